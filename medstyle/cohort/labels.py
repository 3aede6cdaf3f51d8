"""Read labels of images from a CSV table or from annotations in COCO format."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from medstyle.errors import DataError

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

PATH = "path"  # the column that names the file
CATEGORY = "Category"  # the attribute that holds COCO's categories


@dataclass(frozen=True)
class Labels:
    """Attributes of images by name.

    Attributes:
        file: the file that was read; None without labels.
        attributes: attribute names, in the order of the file.
        rows: name of the image in the file -> attribute -> value.
    """

    file: Path | None = None
    attributes: tuple[str, ...] = ()
    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)

    def name(self, path: str) -> str | None:
        """Return the file's name for the image at ``path``, which is the path or its end.

        None if not listed.
        """
        parts = PurePosixPath(path).parts
        names = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((name for name in names if name in self.rows), None)


def read_labels(file: Path) -> Labels:
    """Read a CSV file with a column ``path``, or JSON in COCO format.

    The JSON holds images, annotations and categories. Each other column of a table is an attribute.
    COCO files have the attribute ``Category``: the sorted names of an image's categories, joined by
    commas.

    Raises:
        UserError: the file does not exist, or has neither format.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"ingest.labels: {file}: no such file; name it relative to ingest.source") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"ingest.labels: {file}: not readable as UTF-8 text ({type(error).__name__})") from None
    rows = _coco(file, text) if file.suffix.lower() == ".json" else _table(file, text)
    named = {PurePosixPath(name).as_posix(): values for name, values in rows.items()}
    return Labels(file, tuple(dict.fromkeys(key for values in rows.values() for key in values)), named)


def _table(file: Path, text: str) -> dict[str, dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames or ()
    if PATH not in columns:
        raise DataError(f"ingest.labels: {file}: no column {PATH!r} that names the files; it has {', '.join(columns)}")
    rows: dict[str, dict[str, str]] = {}
    for row in reader:
        name = row.pop(PATH)
        if None in row or None in row.values():
            raise DataError(f"ingest.labels: {file}: line {reader.line_num} does not have {len(columns)} columns")
        if name in rows:
            raise DataError(f"ingest.labels: {file}: line {reader.line_num} names a file for the second time")
        rows[name] = row
    return rows


def _coco(file: Path, text: str) -> dict[str, dict[str, str]]:
    try:
        document: dict[str, list[dict[str, Any]]] = json.loads(text)
        categories = {one["id"]: str(one["name"]) for one in document["categories"]}
        found: dict[Any, set[str]] = defaultdict(set)
        for one in document["annotations"]:
            found[one["image_id"]].add(categories[one["category_id"]])
        return {str(one["file_name"]): {CATEGORY: ",".join(sorted(found[one["id"]]))} for one in document["images"]}
    except (ValueError, KeyError, TypeError) as error:
        cause = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else type(error).__name__
        raise DataError(
            f"ingest.labels: {file}: not annotations in COCO format: images, annotations, categories ({cause})"
        ) from None
