"""Show what would be used, by domain, and what was refused: one page without links."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import Refusal
from medstyle.imaging.picture import read_picture
from medstyle.jobs.atomic import write_text
from medstyle.project.survey import Image, Survey
from medstyle.pseudonyms import short_key, subject_key

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

SHOWN = 12  # images of a domain
SIDE = 160  # pixels
TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
figure { display: inline-block; margin: 0 .75rem .75rem 0; vertical-align: top; width: {{ side }}px; }
img { background: #000; height: {{ side }}px; object-fit: contain; width: {{ side }}px; }
figcaption { color: #555; font-size: 12px; overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
</style>
<h1>{{ title }}</h1>
<p>{{ lead }} The page shows images of the source and stays on this machine; file names are not shown.</p>
{% for name, why, count, subjects, shown in domains %}
<h2>{{ name }}: {{ count }} images of {{ subjects }} subjects</h2>
<p>Recognised by {{ why }}.</p>
{% for subject, key, data in shown %}<figure><img alt="{{ name }}, image {{ key }}" src="{{ data }}"><figcaption>
{{ subject }}</figcaption></figure>{% endfor %}
{% endfor %}
<h2>Left out</h2>
<table><tr><th>images</th><th>reason</th></tr>
{% for why, count in left %}<tr><td>{{ count }}</td><td>{{ why }}</td></tr>{% endfor %}</table>
"""


class Shown(NamedTuple):
    """A domain: why its images belong to it, and up to :data:`SHOWN` of them.

    Each is (key of the subject, key of the image, URL); as many subjects as possible are shown.
    """

    name: str
    why: str
    number: int
    subjects: int
    images: list[tuple[str, str, str]]


class Gallery(NamedTuple):
    """What the page shows: one sentence, the domains, and what is left out: (reason, number)."""

    lead: str
    domains: list[Shown]
    left: list[tuple[str, int]]


def gallery(found: Survey) -> Gallery:
    """Choose what is shown of a survey, with small pictures as URLs of data."""
    domains = []
    for name, subjects in found.domains.items():
        images = [image for of in subjects.values() for image in of]
        shown = [
            (subject_key(subject), short_key("item", image.path), data)
            for subject, image in _spread(subjects)
            if (data := _data(image))
        ]
        reasons = Counter(image.why for image in images).most_common(3)
        why = ", ".join(f"{reason} ({n})" if len(reasons) > 1 else reason for reason, n in reasons)
        domains.append(Shown(name, why, len(images), len(subjects), shown))
    left = [*found.left_out().most_common(), *((f"refused: {code}", n) for code, n in found.refused.most_common())]
    lead = f"{len(found.images)} images were read; {sum(n for _, n in left)} are not used."
    return Gallery(lead, domains, left or [("none", 0)])


def _spread(subjects: Mapping[str, Sequence[Image]]) -> list[tuple[str, Image]]:
    """Choose up to :data:`SHOWN` images: first one of each subject, then the second ones."""
    turns = zip_longest(*([(subject, image) for image in images] for subject, images in subjects.items()))
    chosen = [one for turn in turns for one in turn if one is not None][:SHOWN]
    order = list(subjects)
    return sorted(chosen, key=lambda one: order.index(one[0]))


def write_thumbnails(found: Survey, path: Path) -> None:
    """Write the page: up to :data:`SHOWN` images of each domain, and the reasons of the others."""
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(TEMPLATE)
    write_text(path, template.render(title="What the data show", side=SIDE, **gallery(found)._asdict()))


def _data(image: Image) -> str:
    """Return the middle slice or the picture as a PNG in a URL; "" if it cannot be read."""
    from PIL import Image as Picture

    try:
        if image.item.source == "picture":
            pixels = read_picture(image.item.path)
            pixels = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
        else:
            pixels = _middle(image)
    except Refusal:
        return ""
    picture = Picture.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _middle(image: Image) -> NDArray[np.uint8]:
    voxels = image.item.load(image.domain or "mr_t1", allow=("E_DOMAIN",)).voxels
    plane = voxels[len(voxels) // 2]
    low, high = np.percentile(plane, (0.5, 99.5)) if image.domain != "ct" else (-160.0, 240.0)
    scaled: NDArray[np.uint8] = np.rint(255 * np.clip((plane - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
    return scaled


def table(
    found: Survey, columns: Sequence[str] = ("domain", "subjects", "images", "for example", "why")
) -> list[list[str]]:
    """Return the rows of the table of domains; the first row holds the titles."""
    rows = [list(columns)]
    for name, subjects in found.domains.items():
        images = [image for of in subjects.values() for image in of]
        first = images[0]
        shape = " x ".join(map(str, first.item.shape if first.item.source != "picture" else first.item.shape[1:]))
        spacing = first.item.spacing_mm
        example = shape + (f", {' x '.join(f'{v:.2g}' for v in spacing)} mm" if spacing else " pixels")
        rows.append([name, str(len(subjects)), str(len(images)), example, first.why])
    return rows
