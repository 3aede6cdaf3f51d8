"""Count out-of-distribution warnings and refusals for unseen subjects and for wrong inputs.

Every subject of the phantom's (or the brain's) T1 is judged by a reference of the training
subjects, itself left out; every input is prepared as in use. Two inputs should pass beside the scan
itself: more air around the head, and another gain. Wrong inputs are made from the scans of the test
subjects: another contrast, inverted, upside down, back to front, noise in the place of anatomy; and
another scanner: for the phantom one of 3 T, for the brains the rarer of their two protocols, judged
by the others.
Usage: python benchmarks/ood.py [--data phantom|brain]
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from peers.data import BRAIN, CACHE, DOMAINS, store_of

from medstyle.data.store import Row, SliceStore
from medstyle.imaging.modality import Fingerprint
from medstyle.imaging.volume import Volume, read_volume
from medstyle.inference.ood import assess
from medstyle.networks.networks import Architecture, Networks
from medstyle.networks.translator import Translator, TranslatorConfig
from medstyle.phantom.studies import SITES, PhantomParams, acquire, draw_subject
from medstyle.pseudonyms import subject_key
from medstyle.stages.train import reference_of
from medstyle.transforms.descriptors import image_features
from medstyle.transforms.prepare import prepare

RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Without(SliceStore):
    """A store without some of its subjects."""

    absent: frozenset[str] = frozenset()

    def array(self, domain: str, split: str) -> NDArray[np.float16]:
        """Return the slices of the others."""
        every = super().rows(domain, split)
        return super().array(domain, split)[[i for i, row in enumerate(every) if row.subject not in self.absent]]

    def rows(self, domain: str, split: str) -> list[Row]:
        """Describe the slices of the others."""
        return [row for row in super().rows(domain, split) if row.subject not in self.absent]


def inverted(volume: Volume) -> Volume:
    """Turn bright to dark within the body."""
    body = volume.voxels > np.percentile(volume.voxels, 50)
    return volume.with_voxels(np.where(body, volume.voxels.max() - volume.voxels, 0).astype(np.float32))


def noise(volume: Volume) -> Volume:
    """Replace the body by noise around its mean."""
    body = volume.voxels > np.percentile(volume.voxels, 50)
    mean = volume.voxels[body].mean()
    return volume.with_voxels((body * RNG.rayleigh(mean, volume.voxels.shape)).astype(np.float32))


def along(volume: Volume, world: int) -> int:
    """Return the axis of the voxels that runs most along x (0), y (1) or z (2) of the patient."""
    return 2 - int(np.abs(volume.affine[world, :3] / volume.spacing_mm).argmax())


def flipped(volume: Volume, world: int) -> Volume:
    """Reverse the voxels along x, y or z of the patient and leave the header unchanged."""
    return volume.with_voxels(np.ascontiguousarray(np.flip(volume.voxels, along(volume, world))))


def wider(volume: Volume) -> Volume:
    """Add a quarter more air on each side of the axial slices."""
    sides = [(n // 4,) * 2 for n in volume.voxels.shape]
    sides[along(volume, 2)] = (0, 0)
    return Volume(np.pad(volume.voxels, sides), volume.affine, volume.domain)


CHANGES: dict[str, Callable[[Volume], Volume]] = {
    "more air around it (should pass)": wider,
    "three times the gain (should pass)": lambda v: v.with_voxels(3 * v.voxels),
    "inverted": inverted,
    "noise": noise,
    "upside down": lambda v: flipped(v, 2),
    "back to front": lambda v: flipped(v, 1),
    "left to right": lambda v: flipped(v, 0),
}
# of the brains' two protocols the rarer one, with another matrix
RARE = frozenset(map(subject_key, ("sub-05", "sub-06", "sub-23")))
FEATURES = (*("histogram",) * 16, "share of body", "edges", "edges", "centre of rows", "centre of depth")


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(DOMAINS), default="phantom")
    data = parser.parse_args().data
    if data == "brain" and not BRAIN.is_dir():
        raise SystemExit("the brain data beside the project is absent")
    normalisation = "percentile"
    store = store_of(data, normalisation)
    source, target = DOMAINS[data]
    settings = store.index.preparation
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)

    @cache
    def judged_without(absent: frozenset[str]) -> Translator:
        reference = {source: reference_of(Without(store.folder, store.index, absent), source)}
        config = TranslatorConfig(
            Architecture(widths=(4, 6)), (source, target), source, target, settings,
            {source: Fingerprint((0, 1)), target: Fingerprint((0, 1))}, reference=reference,
        )  # fmt: skip
        return Translator(config, [Networks(config.architecture, config.domains, 1)])

    def enter(name: str, volume: Volume, *absent: str) -> None:
        translator, slices = judged_without(frozenset(absent)), prepare(volume, settings).slices
        statistics = translator.config.reference[source].volume
        z = (image_features(slices.numpy()) - np.array(statistics.centre)) / np.array(statistics.spread)
        rows[name].append((assess(slices, translator).verdict, FEATURES[int(np.abs(z).argmax())]))

    for subject in sorted(store.index.subjects):
        scan, other = (
            read_volume(CACHE / f"{data}-{normalisation}/scans" / subject / f"{domain}.nii.gz", source)
            for domain in (source, target)
        )
        enter("the scan (should pass)", scan, subject)
        if subject in store.subjects("test"):
            for name, change in CHANGES.items():
                enter(name, change(scan))
            enter(f"{target} in the place of {source}", other)
        if subject in RARE:
            enter("another scanner", scan, *RARE)
    if data == "phantom":
        two, count = PhantomParams(sites=2), len(store.index.subjects)
        for index in range(count + 1, count + 17, 2):  # heads beyond the store's
            head = draw_subject(two, index)
            assert head.site is SITES[1]
            enter("another scanner", acquire(two, head, source)[0])
    print(f"{data}, {len(store.subjects('train'))} training subjects\n")
    print(f"| input | n | passed | warned | refused | most unlike in |\n|{'---|' * 6}")
    for name, found in rows.items():
        verdicts = [verdict for verdict, _ in found]
        counts = " | ".join(str(verdicts.count(kind)) for kind in ("ok", "warn", "refuse"))
        by = ", ".join(f"{feature} {n}" for feature, n in Counter(feature for _, feature in found).most_common(2))
        print(f"| {name} | {len(found)} | {counts} | {by} |", flush=True)


if __name__ == "__main__":
    main()
