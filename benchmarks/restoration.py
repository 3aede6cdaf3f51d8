"""Compare the `enhance` recipe with the restoration filters of libraries on unseen photographs.

The photographs were made worse in a known way (less light, blur, noise, compression), so the truth
is known. Each filter has the noise that its library estimates from the picture, times the factor of
``STRENGTHS`` that is best in PSNR on training pictures. No filter lightens a picture: each result
is multiplied by the gain that fits the truth best; the model is measured with and without it. BM3D
is measured if it is installed (`pip install bm3d`; its licence allows no commercial use). The
feature distance is 1 less the cosine of two embeddings by a network trained on ImageNet
(`medstyle[art]`).

Usage: python benchmarks/quality.py enhance --seeds 1
       python benchmarks/restoration.py [--models FOLDER] [--seeds 1] [--sheet FILE.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from quality import ROOT
from scipy.spatial.distance import cosine

from medstyle.data.store import SliceStore
from medstyle.evaluation.pictures import embedded
from medstyle.evaluation.protocols import PROTOCOLS
from medstyle.evaluation.statistics import compare, summary
from medstyle.imaging.picture import from_unit, to_unit, write_picture
from medstyle.inference.translate import translate_picture
from medstyle.networks.imagenet import ImageNet
from medstyle.networks.translator import Translator, TranslatorConfig

Image = NDArray[np.float32]  # (H, W, 3) in [0, 1]
MEASURES = {"psnr": +1, "ssim": +1, "feature distance": -1}  # and which way is better
STRENGTHS = (1.0, 2.0, 4.0, 8.0)
TUNED = 12  # training pictures
SHOWN = 4  # pictures of the sheet


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / ".medstyle/quality/enhance")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sheet", type=Path, help="picture to write: poor, total variation, model, truth, in rows")
    arguments = parser.parse_args()
    translators = [
        Translator.load(arguments.models / f"seed-{seed}" / "models/translator") for seed in range(arguments.seeds)
    ]
    config = translators[0].config
    store = SliceStore.open(arguments.models / "data/slices")
    poor, true = pairs(store, config, "test")
    strengths = tuned(*pairs(store, config, "train"))
    network = ImageNet().eval()
    scores: dict[str, list[list[float]]] = {}
    sheet = []
    for picture, good in zip(poor, true, strict=True):
        pixels, truth = from_unit(picture, np.uint8), to_unit(from_unit(good, np.uint8))
        outputs = {
            name: [fitted(restore(to_unit(pixels), strengths[name]), truth)] for name, restore in filters().items()
        }
        made = [to_unit(translate_picture(pixels, one).image) for one in translators]
        outputs["`enhance`, without the gain"] = made
        outputs["`enhance`"] = [fitted(image, truth) for image in made]
        [known] = embedded(network, [truth])
        for name, images in outputs.items():
            of_seeds = [measured(network, image, truth, known) for image in images]
            scores.setdefault(name, []).append(np.mean(of_seeds, axis=0).tolist())
        if len(sheet) < SHOWN:
            sheet.append(np.hstack([to_unit(pixels), outputs["total variation"][0], outputs["`enhance`"][0], truth]))
    if arguments.sheet:
        write_picture(arguments.sheet, from_unit(np.vstack(sheet), np.uint8))
    show(scores, len(poor), arguments.seeds)


def show(scores: dict[str, list[list[float]]], count: int, seeds: int) -> None:
    """Print means with intervals, and how often the model is better."""
    print(f"{count} unseen photographs, {seeds} seed(s)\n")
    print(f"| method | {' | '.join(MEASURES)} | `enhance` is better on |\n|{'---|' * (len(MEASURES) + 2)}")
    ours = np.array(scores["`enhance`"])
    for name, rows in scores.items():
        table, cells, wins = np.array(rows), [], []
        for column, (measure, sign) in enumerate(MEASURES.items()):
            found = summary(table[:, column].tolist())
            digits = 2 if measure == "psnr" else 3
            cells.append(f"{found['mean']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})")
            p = compare(table[:, column].tolist(), ours[:, column].tolist())["p"] if name != "`enhance`" else None
            share = (sign * (ours[:, column] - table[:, column]) > 0).mean()
            wins.append(f"{share:.0%}" + ("" if p is not None and p < 0.05 else "?"))
        print(f"| {name} | {' | '.join(cells)} | {'' if name == '`enhance`' else ', '.join(wins)} |")


def pairs(store: SliceStore, config: TranslatorConfig, split: str) -> tuple[Image, Image]:
    """Return the poor and the good pictures of a split, ``(N, H, W, 3)`` each."""
    poor, good = (
        (np.asarray(store.array(name, split), np.float32).transpose(0, 2, 3, 1) + 1) / 2
        for name in (config.source, config.target)
    )
    return poor, good


def tuned(poor: Image, good: Image) -> dict[str, float]:
    """Return the strength of each filter with the best PSNR on some training pictures."""
    step = len(poor) // TUNED
    chosen, some = {}, list(zip(poor[::step], good[::step], strict=True))
    for name, restore in filters().items():
        errors = [
            np.mean([np.log(np.square(fitted(restore(a, strength), b) - b).mean()) for a, b in some])
            for strength in STRENGTHS
        ]
        chosen[name] = STRENGTHS[int(np.argmin(errors))]
    print(f"strengths: {chosen}")
    return chosen


def filters() -> dict[str, Callable[[Image, float], Image]]:
    """Return the filters: they take a picture, and a factor of the noise estimated in it."""
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet, estimate_sigma

    def sigma(image: Image, strength: float) -> float:
        return strength * float(estimate_sigma(image, channel_axis=-1, average_sigmas=True))

    def non_local(image: Image, strength: float) -> Image:
        level = sigma(image, strength)
        return denoise_nl_means(image, 5, 6, 0.8 * level, fast_mode=True, sigma=level, channel_axis=-1)

    def wavelet(image: Image, strength: float) -> Image:
        return denoise_wavelet(image, sigma(image, strength), channel_axis=-1, convert2ycbcr=True, rescale_sigma=True)

    found: dict[str, Callable[[Image, float], Image]] = {
        "none": lambda image, strength: image,
        "non-local means": non_local,
        "total variation": lambda image, strength: denoise_tv_chambolle(
            image, weight=sigma(image, strength), channel_axis=-1
        ),
        "wavelets (BayesShrink)": wavelet,
    }
    try:
        from bm3d import bm3d_rgb
    except ImportError:
        return found
    return {**found, "BM3D": lambda image, strength: bm3d_rgb(image, sigma(image, strength))}


def fitted(image: Image, truth: Image) -> Image:
    """Multiply a picture by the factor with the least squared error to the truth."""
    image = np.asarray(image, np.float32)
    return np.clip(image * np.float32((image * truth).sum() / max((image * image).sum(), 1e-9)), 0, 1)


def measured(network: ImageNet, image: Image, truth: Image, known: NDArray[np.float64]) -> list[float]:
    """Return the measures in the order of ``MEASURES``."""
    whole = np.ones((3, *truth.shape[:2]), bool)
    found = PROTOCOLS["paired_pictures"].measure(image.transpose(2, 0, 1), truth.transpose(2, 0, 1), whole)
    return [found["psnr"], found["ssim"], float(cosine(embedded(network, [image])[0], known))]


if __name__ == "__main__":
    main()
