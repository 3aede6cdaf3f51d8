"""Small DICOM series made in memory, and where the conformance set lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

SHARED = Path(__file__).resolve().parents[4] / "shared"
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
    """Write ``stored`` ``(D, H, W)`` integers as one file for each slice; ``change`` edits slice k."""
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
