"""Train the network that recognises contrasts, from label maps alone.

`python -m medstyle.training.recogniser LABELS OUT` makes the weights that come with the package.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import permutations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medstyle.errors import OutputError
from medstyle.networks.recogniser import CONTRASTS, ORIENTATIONS, Calibration, Recogniser, probabilities, slices_of
from medstyle.phantom.heads import label_files, load_labels
from medstyle.phantom.looks import draw_object, draw_scans
from medstyle.transforms.cube import SIDE, cube

HELD_EVERY = 5  # every fifth label map is for validation alone
HEADS, VALIDATION_HEADS = 480, 100
Steps = tuple[int, int]
STEPS: Steps = (5500, 2200)  # with all examples, then without heads of free contrast
BATCH, LEARNING_RATE, NAMED_RATE = 16, 1e-3, 5e-4
LEAST = 0.99  # simulated heads are easier to be sure of than real ones
FALSE_ALARMS = 0.001  # share of validation scans that are clearly called something else
OBJECT = "object"


class Examples(NamedTuple):
    """Cubes ``(N, 72, 72, 72)``, indices of their contrasts, and whether they are heads."""

    cubes: NDArray[np.uint8]
    contrasts: NDArray[np.int64]
    heads: NDArray[np.bool_]


class Turn(NamedTuple):
    """A way to lay a cube: its axes in another order, some of them reversed."""

    axes: tuple[int, ...]
    reversed: tuple[bool, ...]

    @property
    def orientation(self) -> int:
        """Its index in ``ORIENTATIONS``: left and right do not count."""
        if self.axes != (0, 1, 2):
            return 3
        up, forth = self.reversed[:2]
        return 3 if up and forth else 1 if up else 2 if forth else 0

    def __call__(self, cubes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lay a cube ``(72, 72, 72)`` so."""
        return cubes.transpose(self.axes)[tuple(slice(None, None, -1 if one else 1) for one in self.reversed)]


TURNS = [Turn(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)]
BY_ORIENTATION = [[turn for turn in TURNS if turn.orientation == number] for number in range(4)]


def draw_examples(files: Sequence[Path], heads: int, seed: int) -> Examples:
    """Simulate heads from label maps: of each six scans and one object that is no head."""
    found: list[tuple[NDArray[np.uint8], str]] = []
    for index in range(heads):
        rng = np.random.default_rng((seed, index))
        scans = list(draw_scans(rng, load_labels(files[index % len(files)])))
        thing = draw_object(rng, scans[int(rng.integers(len(scans)))][1])
        for contrast, volume in (*scans, (OBJECT, thing)):
            small = cube(volume)
            if small is not None:
                found.append((small, contrast))
    names = np.array([name for _, name in found])
    numbers = np.array([CONTRASTS.index(name) if name in CONTRASTS else CONTRASTS.index("") for name in names])
    return Examples(np.stack([one for one, _ in found]), numbers, names != OBJECT)


def varied(rng: np.random.Generator, cubes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Vary a cube: moved, cut to a slab, in thick slices, with another gamma and white level."""
    moved = np.zeros_like(cubes)
    shift = [int(n) for n in np.clip(np.rint(rng.normal(0, (6, 3, 2))), -16, 16)]
    to = tuple(slice(max(s, 0), SIDE + min(s, 0)) for s in shift)
    moved[to] = cubes[tuple(slice(max(-s, 0), SIDE + min(-s, 0)) for s in shift)]
    axis = int(rng.choice(3, p=(0.6, 0.2, 0.2)))
    if rng.random() < 0.25:
        low = int(rng.integers(0, 22))
        moved.swapaxes(0, axis)[:low] = 0
        moved.swapaxes(0, axis)[SIDE - int(rng.integers(0, 22)) :] = 0
    if rng.random() < 0.3:
        thick = int(rng.choice((2, 3), p=(0.8, 0.2)))
        along = moved.swapaxes(0, axis)
        means = along.reshape(SIDE // thick, thick, SIDE, SIDE).mean(1)
        moved = np.repeat(means.astype(np.uint8), thick, 0).swapaxes(0, axis)
    white = 1.0 if rng.random() < 0.5 else rng.uniform(0.8, 1.1)
    levels = np.minimum(np.arange(256) / 204 / white, 1.25) ** np.exp(0.25 * rng.standard_normal())
    table: NDArray[np.uint8] = np.rint(204 * np.minimum(levels, 1.25)).astype(np.uint8)
    return table[moved]


def batches(examples: Examples, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield slices, contrasts and orientations of :data:`BATCH` examples; two fifths lie right."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        few = rng.random() < 0.25  # pictures of the middle slices alone
        chosen = rng.integers(len(examples.cubes), size=BATCH)
        slices, orientations = [], []
        for number in chosen:
            orientation = int(rng.choice(4, p=(0.4, 0.2, 0.2, 0.2)))
            turn = BY_ORIENTATION[orientation][int(rng.integers(len(BY_ORIENTATION[orientation])))]
            offsets = (int(rng.integers(-2, 3)),) if few else tuple(rng.integers(-13, 14, 3).tolist())
            slices.append(slices_of(turn(varied(rng, examples.cubes[number])), offsets))
            orientations.append(orientation if examples.heads[number] else ORIENTATIONS.index(""))
        yield (
            torch.from_numpy(np.stack(slices)),
            torch.from_numpy(examples.contrasts[chosen]),
            torch.tensor(orientations),
        )


def named(examples: Examples) -> Examples:
    """Leave out heads of free contrast, near which the network would be unsure of real ones."""
    kept = (examples.contrasts != CONTRASTS.index("")) | ~examples.heads
    return Examples(*(values[kept] for values in examples))


def fit(
    examples: Examples, steps: int, seed: int = 0, start: Recogniser | None = None, rate: float = LEARNING_RATE
) -> Recogniser:
    """Train a network with AdamW, one cycle of the learning rate, and both cross-entropies."""
    torch.manual_seed(seed)
    network = (start or Recogniser()).train()
    network.encoder = network.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps)
    began, losses = time.monotonic(), []
    for step, (slices, contrasts, orientations) in enumerate(batches(examples, steps, seed), 1):
        with torch.autocast("cpu", torch.bfloat16):
            of_contrast, of_orientation = network(slices)
        loss = F.cross_entropy(of_contrast.float(), contrasts)
        loss += F.cross_entropy(of_orientation.float(), orientations)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        plan.step()
        losses.append(loss.item())
        if step % 100 == 0:
            print(
                f"step {step}/{steps}: loss {np.mean(losses[-100:]):.3f}, {time.monotonic() - began:.0f} s", flush=True
            )
    return network.eval()


class Judged(NamedTuple):
    """Logits ``(N, 6)`` and ``(N, 5)`` of scans in known orientations, and the truth ``(N,)``."""

    contrast: Tensor
    orientation: Tensor
    true_contrast: Tensor
    true_orientation: Tensor


@torch.inference_mode()
def judge(network: Recogniser, examples: Examples, seed: int = 0) -> Judged:
    """Look at each example upright, and in one other random orientation."""
    rng = np.random.default_rng(seed)
    rows = []
    for one, contrast, head in zip(*examples, strict=True):
        for turn in (TURNS[0], TURNS[int(rng.integers(len(TURNS)))]):
            logits = network(torch.from_numpy(slices_of(turn(varied(rng, one))))[None])
            orientation = turn.orientation if head else ORIENTATIONS.index("")
            rows.append((*(of[0] for of in logits), torch.tensor(contrast), torch.tensor(orientation)))
    return Judged(*(torch.stack(column) for column in zip(*rows, strict=True)))


def calibrate(judged: Judged) -> Calibration:
    """Fit the temperatures by likelihood, then the least probabilities that are called sure.

    They are the lowest at which at most :data:`FALSE_ALARMS` of all scans get a clear wrong answer,
    and not below :data:`LEAST`. An answer that is "unsure" for no reason alarms nobody.
    """
    choices = [math.exp(0.05 * n) for n in range(-20, 41)]

    def temperature(logits: Tensor, truth: Tensor) -> float:
        return min(choices, key=lambda t: float(F.cross_entropy(logits / t, truth)))

    temperatures = (
        temperature(judged.contrast, judged.true_contrast),
        temperature(judged.orientation, judged.true_orientation),
    )
    sure = []
    for p, truth in _answers(judged, Calibration(temperatures)):
        best, answer = p.max(1)
        wrong = best[(answer != truth) & (answer != p.shape[1] - 1)].sort(descending=True).values
        allowed = int(FALSE_ALARMS * len(truth))
        sure.append(min(max(LEAST, float(wrong[allowed]) + 1e-4), 0.9999) if len(wrong) > allowed else LEAST)
    return Calibration(temperatures, (sure[0], sure[1]))


def _answers(judged: Judged, calibration: Calibration) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the probabilities and the truth of the contrasts, and of the orientations."""
    p, q = probabilities(judged.contrast, judged.orientation, calibration)
    return (p, judged.true_contrast), (q, judged.true_orientation)


def report(judged: Judged, calibration: Calibration) -> dict[str, float]:
    """Return the shares of clear answers that are right, that are wrong, and that have no truth."""
    found = {}
    kinds = zip(("contrast", "orientation"), _answers(judged, calibration), calibration.sure, strict=True)
    for what, (p, truth), sure in kinds:
        best, answer = p.max(1)
        none = p.shape[1] - 1
        clear, known = (best >= sure) & (answer != none), truth != none
        for name, chosen, among in (
            ("clear and right, of those with an answer", clear & (answer == truth), known),
            ("clear and wrong, of those with an answer", clear & (answer != truth), known),
            ("clear, of those without an answer", clear, ~known),
        ):
            found[f"{what}: {name}"] = round(float(chosen[among].float().mean()), 4)
    return found


def write(folder: Path, network: Recogniser, calibration: Calibration, facts: dict[str, object]) -> None:
    """Write weights of 16 bits and ``contrast.json``: the calibration and the facts."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    weights = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }
    save_file(weights, folder / "weights.safetensors")
    text = json.dumps({**asdict(calibration), **facts}, indent=1) + "\n"
    (folder / "contrast.json").write_text(text, encoding="utf-8")


def train(
    labels: Path, out: Path, seed: int = 0, heads: int = HEADS, held: int = VALIDATION_HEADS, steps: Steps = STEPS
) -> None:
    """Simulate, train, calibrate and write the new folder ``out``."""
    if out.exists():
        raise OutputError(f"{out}: exists already; name a new folder")
    files = label_files(labels)
    kept = files[HELD_EVERY - 1 :: HELD_EVERY] or files
    began = time.monotonic()
    examples = draw_examples([file for file in files if file not in kept] or files, heads, seed)
    drawn = time.monotonic() - began
    network = fit(examples, steps[0], seed)
    network = fit(named(examples), steps[1], seed + 1, network, NAMED_RATE)
    judged = judge(network, named(draw_examples(kept, held, seed + 1)), seed)
    calibration = calibrate(judged)
    facts = {
        "seed": seed, "label_maps": len(files), "held_out_maps": len(kept),
        "heads": heads, "scans": len(examples.cubes),
        "steps": list(steps), "batch": BATCH, "weights": sum(p.numel() for p in network.parameters()),
        "minutes": [round(drawn / 60, 1), round((time.monotonic() - began) / 60, 1)],
        "validation": report(judged, calibration),
    }  # fmt: skip
    write(out, network, calibration, facts)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path, help="folder of label maps")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    train(given.labels, given.out, given.seed)
