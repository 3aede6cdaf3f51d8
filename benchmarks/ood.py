"""How often the out-of-distribution gate warns and refuses: unseen subjects of the same kind, and wrong inputs.

The reference is made from the training subjects of the phantom's T1 (or the brain's); every input is prepared as in
use. Wrong inputs are made from the same unseen subjects: another contrast, inverted, upside down, back to front, noise
in the place of anatomy, and for the phantom the scans of another scanner.
Usage: python benchmarks/ood.py [--data phantom|brain]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
from peers.data import BRAIN, CACHE, DOMAINS, store_of

from medstyle.imaging.modality import Fingerprint
from medstyle.imaging.phantom import SITES, PhantomParams, acquire, draw_subject
from medstyle.imaging.volume import Volume, read_volume
from medstyle.inference.ood import judge
from medstyle.networks.translator import Architecture, Networks, Translator, TranslatorConfig
from medstyle.params import parse
from medstyle.stages.train import reference_statistics
from medstyle.transforms.prepare import Preparation, prepare

RNG = np.random.default_rng(0)


def inverted(volume: Volume) -> Volume:
    """Turn bright to dark within the body."""
    body = volume.voxels > np.percentile(volume.voxels, 50)
    return volume.with_voxels(np.where(body, volume.voxels.max() - volume.voxels, 0).astype(np.float32))


def noise(volume: Volume) -> Volume:
    """Put noise of the body's mean in its place."""
    body = volume.voxels > np.percentile(volume.voxels, 50)
    mean = volume.voxels[body].mean()
    return volume.with_voxels((body * RNG.rayleigh(mean, volume.voxels.shape)).astype(np.float32))


WRONG: dict[str, Callable[[Volume], Volume]] = {
    "inverted": inverted,
    "noise": noise,
    "upside down": lambda v: v.with_voxels(np.ascontiguousarray(v.voxels[::-1])),
    "back to front": lambda v: v.with_voxels(np.ascontiguousarray(v.voxels[:, ::-1])),
}


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
    settings = parse(Preparation, store.index["preparation"], "store")
    config = TranslatorConfig(
        Architecture(widths=(4, 6)), [source, target], source, target, asdict(settings),
        {source: Fingerprint((0, 1)), target: Fingerprint((0, 1))}, reference=reference_statistics(store, source),
    )  # fmt: skip
    translator = Translator(config, [Networks(config.architecture, config.domains, 1)])
    scans = CACHE / f"{data}-{normalisation}/scans"

    def verdict(volume: Volume) -> str:
        return judge(prepare(volume, settings).slices, translator).verdict

    held = store.subjects("test")
    own = [read_volume(scans / subject / f"{source}.nii.gz", source) for subject in held]
    other = [read_volume(scans / subject / f"{target}.nii.gz", source) for subject in held]
    rows = {"unseen subjects (should pass)": own, f"{target} in the place of {source}": other}
    rows |= {name: [change(volume) for volume in own] for name, change in WRONG.items()}
    if data == "phantom":
        two = PhantomParams(sites=2)
        pairs = [draw_subject(two, index) for index in range(1, 13, 2)]  # those of the second scanner
        assert all(subject.site is SITES[1] for subject in pairs)
        rows["another scanner"] = [acquire(two, subject, source)[0] for subject in pairs]
    print(f"{data}, {len(store.subjects('train'))} training subjects\n")
    print("| input | n | passed | warned | refused |\n|---|---|---|---|---|")
    for name, volumes in rows.items():
        found = [verdict(volume) for volume in volumes]
        counts = " | ".join(str(found.count(kind)) for kind in ("ok", "warn", "refuse"))
        print(f"| {name} | {len(found)} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
