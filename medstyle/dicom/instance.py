"""Identify, read and encode single instances for those who carry them, not for those who look."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from medstyle.dicom.elements import words
from medstyle.errors import Code, Refusal, reading

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

STORAGE_COMMITMENT = "1.2.840.10008.1.20.1.1"  # the well-known instance of the push model (PS3.4 J.3.5)


class Identity(NamedTuple):
    """What an instance is, without anything of the patient."""

    study: str
    series: str
    instance: str
    sop_class: str
    syntax: str


def identify(source: bytes | Path) -> Identity:
    """Return the identifiers of a DICOM file (PS3.10), of which no pixel is read.

    Raises:
        Refusal: ``E_DECODE`` it is damaged, or an identifier is missing.
    """
    tags = words("StudyInstanceUID SeriesInstanceUID SOPInstanceUID SOPClassUID")
    with reading():
        data = BytesIO(source) if isinstance(source, bytes) else source
        dataset = dcmread(data, stop_before_pixels=True, specific_tags=list(tags))
        found = [str(dataset.get(tag) or "") for tag in tags]
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if not all(found):
        raise Refusal(Code.E_DECODE, "a UID of study, series, instance or class is missing; export it again")
    return Identity(found[0], found[1], found[2], found[3], syntax)


def read_instance(path: Path) -> Dataset:
    """Read a whole file; its values stay as they are encoded."""
    with reading():
        return dcmread(path)


def encoded(dataset: Dataset) -> bytes:
    """Return an instance as a DICOM file."""
    file = BytesIO()
    with reading():
        dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def commitment(transaction: str, instances: Iterable[Identity]) -> Dataset:
    """Return the request for storage commitment (PS3.4 J.3.2.1)."""
    request = Dataset()
    request.TransactionUID = transaction
    request.ReferencedSOPSequence = [_reference(one) for one in instances]
    return request


def _reference(one: Identity) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.sop_class, one.instance
    return item


def answered(answer: Dataset) -> tuple[set[str], set[str]]:
    """Return the instances that an archive has, and those that it has not.

    It says so in its answer to a STOW-RS request (PS3.18 I.2) or in a report of storage commitment
    (PS3.4 J.3.3.1).
    """

    def uids(name: str) -> set[str]:
        return {str(item.get("ReferencedSOPInstanceUID", "")) for item in answer.get(name) or ()}

    return uids("ReferencedSOPSequence"), uids("FailedSOPSequence")


def from_json(text: str | bytes) -> Dataset:
    """Read a data set in DICOM JSON (PS3.18 F)."""
    with reading():
        return Dataset.from_json(text if isinstance(text, str) else text.decode())


def json_value(row: dict[str, Any], tag: str) -> str:
    """Return the first value of ``tag`` (eight hexadecimal digits) in DICOM JSON, "" if none."""
    values = row.get(tag, {}).get("Value") or [""]
    return str(values[0])
