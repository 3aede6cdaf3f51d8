"""Draw the figures and write the one-page report."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medstyle.evaluation.measured import Row
from medstyle.evaluation.statistics import summary
from medstyle.imaging.picture import from_unit
from medstyle.imaging.video import Frame, VideoWriter
from medstyle.jobs.atomic import write_text

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


def figure(
    path: Path, columns: Mapping[str, Sequence[NDArray] | NDArray], rows: Sequence[str], error: str | None = None
) -> None:
    """Write a grid of images ``(H, W)`` or ``(H, W, 3)`` in [0, 1] as PNG, one column per entry.

    Each column has one image per row. The column named ``error`` is drawn as a heat map from 0 to
    0.3 with its scale; no other values are rescaled.
    """
    from matplotlib.figure import Figure

    n = len(rows)
    height, width = next(iter(columns.values()))[0].shape[:2]
    plot = Figure(figsize=(2.2 * len(columns), 2.2 * n * height / width + 0.4), layout="constrained")
    axes = plot.subplots(n, len(columns), squeeze=False)
    for j, (title, pictures) in enumerate(columns.items()):
        for i in range(n):
            axis = axes[i][j]
            style: dict[str, Any] = {"cmap": "inferno", "vmax": 0.3} if title == error else {"cmap": "gray", "vmax": 1}
            drawn = axis.imshow(np.clip(pictures[i], 0, 1), vmin=0, interpolation="nearest", **style)
            axis.set_xticks([])
            axis.set_yticks([])
            if i == 0:
                axis.set_title(title, fontsize=10)
            if j == 0:
                axis.set_ylabel(rows[i], fontsize=8)
        if title == error:
            plot.colorbar(drawn, ax=[row[j] for row in axes], fraction=0.06, pad=0.02)
    plot.savefig(path, dpi=110, metadata={"Software": None})


def distribution(path: Path, rows: Sequence[Row], measures: Sequence[str]) -> None:
    """Draw one panel per measure: a dot per subject and method, the mean and its 95 % interval.

    Methods are no sequence, so no line joins them; a subject has the same offset in each.
    """
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(row.method for row in rows))
    plot = Figure(figsize=(3.2 * len(measures), 3), layout="constrained")
    axes = plot.subplots(1, len(measures), squeeze=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        for place, method in enumerate(methods):
            values = [row.measures[measure] for row in rows if row.method == method]
            dots = place + np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else [place]
            axis.plot(dots, values, "o", ms=4, color="0.4", alpha=0.6, mew=0)
            found = summary(values)
            ends = np.array([[found["mean"] - found["low"]], [found["high"] - found["mean"]]])
            axis.errorbar(place + 0.3, found["mean"], np.maximum(ends, 0), fmt="D", ms=5, color="C0", capsize=3)
        axis.set_title(measure)
        axis.set_xticks(range(len(methods)), [m.replace("_", "\n") for m in methods], fontsize=8)
        axis.set_xlim(-0.4, len(methods) - 0.4)
    plot.savefig(path, dpi=110, metadata={"Software": None})


def strip(images: NDArray, most_px: int = 224) -> dict[str, Any]:
    """Return slices ``(n, H, W)`` in [0, 1], stacked into one image for the page: 8 bits, WebP.

    Slices with a side above ``most_px`` are downsampled.
    """
    from PIL import Image

    scale = min(1.0, most_px / max(images.shape[1:]))
    height, width = (max(1, round(n * scale)) for n in images.shape[1:])
    levels = np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
    small = [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BOX)) for one in levels]
    return {
        "data": _webp(Image.fromarray(np.concatenate(small)), 90),
        "width": width,
        "height": height,
        "count": len(small),
    }


def picture_data(picture: NDArray, most_px: int = 512) -> str:
    """Return a picture ``(H, W, 3)`` in [0, 1] as WebP with sides of at most ``most_px``."""
    from PIL import Image

    image = Image.fromarray(from_unit(picture, np.uint8))
    image.thumbnail((most_px, most_px))
    return _webp(image, 85)


def _webp(image: Any, quality: int) -> str:
    import io

    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def recorded(frames: Iterable[Frame], path: Path, like: Path, most_px: int = 360) -> Iterator[Frame]:
    """Pass frames of 8 bits on while writing them as a small MP4 for the page, without sound."""
    from PIL import Image

    with VideoWriter(path, like, sound=False, crf=28) as writer:
        for frame in frames:
            image = Image.fromarray(frame.pixels)
            image.thumbnail((most_px * 2, most_px))
            writer.write(Frame(np.asarray(image), frame.time))
            yield frame


def clip_data(path: Path) -> str:
    """Return a video of :func:`recorded` for the page."""
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def curves(path: Path, table: Path) -> None:
    """Draw the losses of ``training.csv`` over steps, one panel per player.

    Positive values on a log axis.
    """
    import csv

    from matplotlib.figure import Figure

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups: dict[str, list[str]] = {}
    for name in rows[0] if rows else []:
        if "/" in name:
            groups.setdefault(name.partition("/")[0], []).append(name)
    if not groups:
        return
    plot = Figure(figsize=(3.6 * len(groups), 2.8), layout="constrained")
    axes = plot.subplots(1, len(groups), squeeze=False)
    for axis, (group, names) in zip(axes[0], groups.items(), strict=True):
        drawn = []
        for name in names:
            points = [(float(row["step"]), float(row[name])) for row in rows if row[name]]
            if points:
                axis.plot(*zip(*points, strict=True), lw=1, label=name.partition("/")[2])
                drawn += [value for _, value in points]
        axis.set_title(group)
        axis.set_xlabel("step")
        if drawn and min(drawn) > 0:
            axis.set_yscale("log")
        axis.legend(fontsize=6)
    plot.savefig(path, dpi=110, metadata={"Software": None})


def write_page(path: Path, template: str, figures: Sequence[Path], **facts: Any) -> None:
    """Render a self-contained HTML page (no network access) with the figures inside."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("medstyle", "evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # keeps the order of the viewer's layers
    pictures = {f.stem: f"data:image/png;base64,{base64.b64encode(f.read_bytes()).decode()}" for f in figures}
    write_text(path, environment.get_template(template).render(pictures=pictures, **facts))
