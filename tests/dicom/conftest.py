"""Small DICOM series made in memory, and where the conformance set lies."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.conftest import SHARED

STORAGE = {"MR": "1.2.840.10008.5.1.4.1.1.4", "CT": "1.2.840.10008.5.1.4.1.1.2"}


def decimal(value: float) -> str:
    return next(text for digits in range(16, 0, -1) if len(text := f"{value:.{digits}g}") <= 16)


def slice_header(modality: str = "MR", **elements: Any) -> Dataset:
    """Return a legal header of one MR or CT slice; ``elements`` override it, None removes."""
    dataset = Dataset()
    values: dict[str, Any] = {
        "SOPClassUID": STORAGE[modality],
        "SOPInstanceUID": "2.25.1",
        "StudyInstanceUID": "2.25.10",
        "SeriesInstanceUID": "2.25.20",
        "FrameOfReferenceUID": "2.25.30",
        "Modality": modality,
        "PatientID": "ZZCANARYID",
        "PatientName": "ZZCANARY^NAME",
        "PatientBirthDate": "19700101",
        "PatientSex": "O",
        "StudyDate": "20240101",
        "StudyTime": "101010",
        "StudyID": "1",
        "AccessionNumber": "ZZCANARYACC",
        "SeriesNumber": 3,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"],
        "SliceThickness": "2",
        "SeriesDescription": "T1 axial",
        "Manufacturer": "ACME",
        "PixelSpacing": ["1", "1"],
        "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
        "ImagePositionPatient": ["0", "0", "0"],
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        **({"RescaleSlope": "1", "RescaleIntercept": "0"} if modality == "CT" else {}),
        **elements,
    }
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset


def save(dataset: Dataset, path: Path, syntax: UID = ExplicitVRLittleEndian) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    stored: NDArray[Any],
    affine: NDArray[np.float64] | None = None,
    *,
    modality: str = "MR",
    syntax: UID = ExplicitVRLittleEndian,
    bits: int | None = None,
    change: Callable[[int, Dataset], None] | None = None,
    **elements: Any,
) -> Path:
    """Write ``stored`` ``(D, H, W)`` integers as one file for each slice.

    ``change`` edits slice k.
    """
    affine = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :2] / spacing[:2]
    for k, pixels in enumerate(stored):
        dataset = slice_header(
            modality,
            **{
                "SOPInstanceUID": f"2.25.20{k}",
                "Rows": pixels.shape[0],
                "Columns": pixels.shape[1],
                "BitsAllocated": pixels.dtype.itemsize * 8,
                "BitsStored": bits or pixels.dtype.itemsize * 8,
                "HighBit": (bits or pixels.dtype.itemsize * 8) - 1,
                "PixelRepresentation": int(pixels.dtype.kind == "i"),
                "PixelSpacing": [decimal(spacing[1]), decimal(spacing[0])],
                "ImageOrientationPatient": [decimal(v) for v in axes.T.ravel()],
                "ImagePositionPatient": [decimal(v) for v in (affine @ [0, 0, k, 1])[:3]],
                "InstanceNumber": k + 1,
                **elements,
            },
        )
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        dataset.PixelData = data + b"\0" * (len(data) % 2)
        dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
        if change:
            change(k, dataset)
        save(dataset, folder / f"{k:03d}.dcm", syntax)
    return folder


def enhanced(frames: list[dict[str, Any]], pixels: NDArray[Any]) -> Dataset:
    """Return an enhanced MR object.

    Each frame has its place ``z``, ``slope``, ``type`` and moment ``t``.
    """

    def item(**elements: Any) -> Dataset:
        dataset = Dataset()
        for name, value in elements.items():
            setattr(dataset, name, value)
        return dataset

    dataset = slice_header(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1",
        **dict.fromkeys(["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"]),
        NumberOfFrames=len(frames),
        Rows=pixels.shape[1],
        Columns=pixels.shape[2],
    )
    orientation = item(ImageOrientationPatient=["1", "0", "0", "0", "1", "0"])
    measures = item(PixelSpacing=["2", "3"], SliceThickness="4")
    dataset.SharedFunctionalGroupsSequence = [
        item(PlaneOrientationSequence=[orientation], PixelMeasuresSequence=[measures])
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=["0", "0", str(f["z"])])],
            PixelValueTransformationSequence=[
                item(RescaleSlope=str(f["slope"]), RescaleIntercept="0", RescaleType="US")
            ],
            MRImageFrameTypeSequence=[item(FrameType=["ORIGINAL", "PRIMARY", f["type"], "NONE"])],
            FrameContentSequence=[item(StackID="1", TemporalPositionIndex=f["t"])],
        )
        for f in frames
    ]
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


@pytest.fixture(name="write_series")
def _write_series() -> Callable[..., Path]:
    return write_series


@pytest.fixture(name="slice_header")
def _slice_header() -> Callable[..., Dataset]:
    return slice_header


@pytest.fixture(name="save")
def _save() -> Callable[..., Path]:
    return save


@pytest.fixture
def shared() -> Path:
    """The folder of development data beside the project."""
    if not SHARED.is_dir():
        pytest.skip("the development data beside the project is absent")
    return SHARED


SYNTAXES = {"implicit": ImplicitVRLittleEndian, "explicit": ExplicitVRLittleEndian, "big endian": ExplicitVRBigEndian}


@pytest.fixture(params=SYNTAXES, ids=list(SYNTAXES))
def native_syntax(request: pytest.FixtureRequest) -> UID:
    return SYNTAXES[request.param]


def csa_header(spare: int = 2, **tags: Sequence[Any]) -> bytes:
    """Write Siemens' private header in its second format.

    As scanners do, with ``spare`` more items than values.
    """
    kinds = {"NumberOfImagesInMosaic": b"US", "AcquisitionMatrixText": b"SH"}
    parts = [b"SV10\4\3\2\1", struct.pack("<2L", len(tags), 77)]
    for name, values in tags.items():
        items = [*(f"{value}".encode() + b"\0" for value in values), *[b""] * spare]
        parts.append(struct.pack("<64sL4s3L", name.encode(), len(values), kinds.get(name, b"FD"), 4, len(items), 77))
        for item in items:
            parts += [struct.pack("<4L", len(item), len(item), 77, len(item)), item, bytes(-len(item) % 4)]
    return b"".join(parts)


def write_mosaic(
    path: Path,
    stored: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    syntax: UID = ExplicitVRLittleEndian,
    csa: bytes | None = None,
    **elements: Any,
) -> Path:
    """Write ``stored`` ``(D, H, W)`` as one picture of tiles whose slice k lies where ``affine``
    says."""
    depth, rows, columns = stored.shape
    across = next(n for n in range(1, depth + 1) if n * n >= depth)
    sheet = np.zeros((across * rows, across * columns), stored.dtype)
    for k, pixels in enumerate(stored):
        below, right = divmod(k, across)
        sheet[below * rows : (below + 1) * rows, right * columns : (right + 1) * columns] = pixels
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / spacing
    beside = np.array([columns, rows]) * (across - 1) / 2  # the sheet is centred on the slice
    position = affine @ [*-beside, 0, 1]
    dataset = slice_header(
        **{
            "Rows": sheet.shape[0],
            "Columns": sheet.shape[1],
            "PixelSpacing": [decimal(spacing[1]), decimal(spacing[0])],
            "ImageOrientationPatient": [decimal(v) for v in axes[:, :2].T.ravel()],
            "ImagePositionPatient": [decimal(v) for v in position[:3]],
            "SpacingBetweenSlices": decimal(spacing[2]),
            "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
            **elements,
        }
    )
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    facts = {
        "AcquisitionMatrixText": [f"{rows}*{columns}"],
        "NumberOfImagesInMosaic": [depth],
        "SliceNormalVector": [f"{v:.8f}" for v in axes[:, 2]],
    }
    block.add_new(0x10, "OB", csa_header(**facts) if csa is None else csa)
    dataset.PixelData = sheet.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    return save(dataset, path, syntax)


@pytest.fixture(name="write_mosaic")
def _write_mosaic() -> Callable[..., Path]:
    return write_mosaic


@pytest.fixture(name="csa_header")
def _csa_header() -> Callable[..., bytes]:
    return csa_header
