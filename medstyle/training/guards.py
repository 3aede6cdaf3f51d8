"""Stop with a named cause instead of training on silently: check data first, then every step."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medstyle.data.sampler import BatchSampler, Images
from medstyle.errors import DataError, TrainingError
from medstyle.imaging.modality import DOMAINS
from medstyle.transforms.body import is_body

CHECKED = 64  # number of subjects that are checked before training
WARM_UP = 200  # steps before the outputs are expected to be images
LEAST = 4  # smallest number of subjects for a check
WON, CHANCE = 0.985, 0.58  # limits of the mean share of patches that the discriminator classifies correctly
Curve = Sequence[dict[str, float]]
Slices = Mapping[str, NDArray[np.float32]]  # subject -> (C, H, W)


def check_data(sampler: BatchSampler) -> None:
    """Check a few slices of up to ``CHECKED`` subjects before training.

    Raises:
        UserError: images are constant or contain NaN, the domains of a subject are swapped, or
            pairs show different anatomy. The message names the subject by its pseudonym.
    """
    middles = {name: _middles(images) for name, images in sampler.images.items()}
    for name, slices in middles.items():
        flat = [subject for subject, image in slices.items() if np.ptp(image) < 1e-2]
        if flat:
            raise DataError(f"{name} of subject {flat[0]} ({len(flat)} in all): flat image; remove or repair it")
    alike = [name for name in middles if not DOMAINS[name].any_contrast]  # two of any contrast may well be swapped
    for name, other in combinations(alike, 2):
        _check_swapped(middles[name], middles[other], name, other)
    if sampler.sampling.paired:
        source, target = (middles[name] for name in sampler.sampling.domains[:2])
        _check_pairs(source, target, *sampler.sampling.domains[:2])


def _middles(images: Images) -> dict[str, NDArray[np.float32]]:
    """Return the middle usable slice ``(C, H, W)`` of each checked subject."""
    step = max(1, len(images.subjects) // CHECKED)
    found = {}
    for subject in images.subjects[::step][:CHECKED]:
        places = images.usable[subject]
        if not len(places):
            continue
        found[subject] = images.block(subject, int(places[len(places) // 2]), 1)[0]
    return found


def _check_pairs(source: Slices, target: Slices, name: str, other: str) -> None:
    """Check that a subject's own pair shares more information than pairs of two subjects."""
    subjects = [s for s in source if s in target]
    if len(subjects) < LEAST:
        print(f"medstyle: {len(subjects)} subjects are too few to check pairs", file=sys.stderr, flush=True)
        return
    own = {s: _information(source[s], target[s]) for s in subjects}
    mixed = {s: _information(source[s], target[o]) for s, o in zip(subjects, [*subjects[1:], subjects[0]], strict=True)}
    broken = [s for s in subjects if own[s] <= np.median(list(mixed.values()))]
    if len(broken) > len(subjects) / 2:
        raise DataError(
            f"pairs of {name} and {other} show different anatomy ({len(broken)} of {len(subjects)} checked subjects, "
            f"{broken[0]} among them): check the identities, set denoise.alignment to rigid, or train unpaired"
        )


def _check_swapped(source: Slices, target: Slices, name: str, other: str) -> None:
    """Compare the two histograms of each subject that has both domains with the median subject."""
    histograms = {s: (_histogram(source[s]), _histogram(target[s])) for s in source if s in target}
    if len(histograms) < LEAST:
        return
    centre = [np.median([h[i] for h in histograms.values()], axis=0) for i in (0, 1)]
    gap = float(np.abs(centre[0] - centre[1]).sum())
    for subject, (mine, theirs) in histograms.items():
        straight = np.abs(mine - centre[0]).sum() + np.abs(theirs - centre[1]).sum()
        crossed = np.abs(mine - centre[1]).sum() + np.abs(theirs - centre[0]).sum()
        if gap > 0.5 and crossed < 0.5 * straight:
            raise DataError(
                f"subject {subject}: its {name} looks like the {other} of the others, and vice versa; correct "
                "ingest.rules or the files"
            )


def _information(a: NDArray[np.float32], b: NDArray[np.float32], bins: int = 24) -> float:
    """Return the normalised mutual information of two slices within their common body."""
    inside = is_body(a[0]) & is_body(b[0])
    if inside.sum() < 50:
        return 0.0
    ranks = [np.argsort(np.argsort(x[0][inside])) * bins // int(inside.sum()) for x in (a, b)]
    joint = np.bincount(ranks[0] * bins + ranks[1], minlength=bins * bins) / int(inside.sum())
    positive = joint[joint > 0]
    return float(2 * np.log(bins) + (positive * np.log(positive)).sum()) / float(np.log(bins))


def _histogram(image: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cumulative shares of the body's values at 16 levels."""
    body = np.sort(image[is_body(image)])
    return np.searchsorted(body, np.linspace(-1, 1.5, 17)[1:]) / max(1, body.size)


class Guard:
    """Watch the training; its state is in the curve and in ``bad``, so a resumed run behaves alike.

    Args:
        points: number of points that the curve will have. The discriminator is assessed over the
            last quarter of that number, at least 10 and at most 40 points.
    """

    def __init__(self, points: int = 160) -> None:
        self.look = min(40, max(10, points // 4))
        self.bad: dict[str, int] = {}  # phase -> consecutive updates that were skipped
        self.warned: set[str] = set()

    def finite(self, phase: str, norm: Tensor) -> bool:
        """Return whether the gradient is finite; stop at the third bad update in a row."""
        if bool(torch.isfinite(norm)):
            self.bad[phase] = 0
            return True
        self.bad[phase] = self.bad.get(phase, 0) + 1
        if self.bad[phase] == 3:
            raise TrainingError(
                f"training stopped: the gradient of the {phase} is not finite three times in a row; look for "
                "constant or damaged images in reports/ingest.json, or lower training.learning_rate"
            )
        return False

    def outputs(self, fake: Tensor, target: Tensor, source: Tensor, step: int) -> dict[str, float]:
        """Measure the generated images.

        Stop if they are constant, all alike, or of extreme contrast.
        """
        made, real, seen = (x.detach().float().flatten(1) for x in (fake, target, source))
        ratio = float(made.std(1).mean() / real.std(1).mean().clamp(min=0.05))
        values = {"guard/contrast": ratio}
        if step <= WARM_UP:
            return values
        if float(made.std(1).max()) < 1e-3:
            raise TrainingError(
                f"training stopped at step {step}: the generator's images are constant; lower training.learning_rate "
                "or the adversarial weight, and check that the training images are not constant"
            )
        if len(made) > 1:
            apart = (seen[1:] - seen[:-1]).abs().mean()
            values["guard/variety"] = float((made[1:] - made[:-1]).abs().mean() / apart.clamp(min=1e-6))
            if float(apart) > 0.05 and values["guard/variety"] < 0.02:
                raise TrainingError(
                    f"training stopped at step {step}: different inputs give the same image (mode collapse); lower the "
                    "adversarial weight or raise the contrastive or cycle weight"
                )
        if not 0.1 < ratio < 10:
            raise TrainingError(
                f"training stopped at step {step}: the contrast of the outputs is {ratio:.2g} times the targets'; "
                "lower training.learning_rate, and check that all images of a domain are normalised in the same way"
            )
        return values

    def curve(self, curve: Curve, paired: bool, progress: float) -> None:
        """Stop if the curve shows that the discriminator has won or that nothing is learned."""
        if not curve:
            return
        now = curve[-1]["step"]
        right = [row["discriminator/share_right"] for row in curve if "discriminator/share_right" in row]
        recent = right[-self.look :]  # means, because single points are noisy
        full = len(recent) == self.look
        won, at_chance = full and np.mean(recent) > WON, full and np.mean(recent) < CHANCE
        if won and not paired:
            raise TrainingError(
                f"training stopped at step {now:.0f}: the discriminator tells every image apart, and no other "
                "term teaches the style; raise weights.r1 or lower training.discriminator_learning_rate"
            )
        if (won or at_chance) and "discriminator" not in self.warned:
            self.warned.add("discriminator")
            what = (
                "tells every image apart: the generator learns little from it"
                if won
                else f"is at chance ({np.mean(recent):.0%} of patches are classified correctly): what it sees looks "
                "real, or it is too weak to judge it; `sharpness` in the report tells which"
            )
            print(f"medstyle: the discriminator {what}", file=sys.stderr, flush=True)
        apart = [row["guard/styles_apart"] for row in curve if "guard/styles_apart" in row and row["step"] > WARM_UP]
        if progress > 0.1 and len(apart) >= 10 and max(apart[-10:]) < 1e-3:
            raise TrainingError(
                f"training stopped at step {now:.0f}: every style gives the same image; raise the weights of style, "
                "diversity or adversarial, and check that the domains differ"
            )
        errors = [row["validation/of_copy"] for row in curve if "validation/of_copy" in row][-3:]
        if paired and progress > 0.1 and now > WARM_UP and len(errors) == 3 and min(errors) > 1:
            raise TrainingError(
                f"training stopped at step {now:.0f}: on unseen subjects the output is further from the target than "
                "the untouched source; check ingest.rules (swapped domains?) and the alignment of the pairs"
            )
