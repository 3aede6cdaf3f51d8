"""Write a volume as the slices of an MR or CT series, as if it had been acquired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medstyle.dicom.uids import IMPLEMENTATION_UID, uid_of
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.volume import Volume

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

MAX_STORED = 4095  # 12 bits, as most MR and CT scanners store
CT_INTERCEPT = -1024
FIXED_DATE = "20200101"  # a fixed date, so that the same content has the same bytes

MR = {"ScanOptions": None, "MRAcquisitionType": "2D", "PatientPosition": "HFS", "PositionReferenceIndicator": ""}
CT = {"KVP": "120", "AcquisitionNumber": 1, "PatientPosition": "HFS", "PositionReferenceIndicator": ""}
CT |= {"RescaleIntercept": str(CT_INTERCEPT), "RescaleSlope": "1", "RescaleType": "HU"}


def write_series(folder: Path, volume: Volume, attributes: Mapping[str, Any], names: Sequence[int]) -> None:
    """Write ``volume`` as one DICOM file per slice, with 12 bits stored; other values are clipped.

    Args:
        folder: created if missing; the file of slice ``k`` is ``<names[k]>.dcm``.
        volume: of an MR domain (values 0-4095) or a CT domain (HU).
        attributes: DICOM keyword -> value, the same for every slice; must include StudyInstanceUID
            and SeriesInstanceUID, from which the UIDs of the instances are derived.
        names: one number per slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_ct = DOMAINS[volume.domain].dicom == "CT"
    stored = np.clip(np.rint(volume.voxels - (CT_INTERCEPT if is_ct else 0)), 0, MAX_STORED).astype("<u2")
    dataset = _header(volume, attributes, is_ct)
    for k, (pixels, name) in enumerate(zip(stored, names, strict=True)):
        _place(dataset, volume, k)
        dataset.PixelData = pixels.tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.save_as(folder / f"{name:04d}.dcm", enforce_file_format=True)


def _decimals(values: NDArray[np.float64]) -> list[Any]:
    from pydicom.valuerep import DSfloat

    return [DSfloat(float(value), auto_format=True) for value in values]


def _place(dataset: Any, volume: Volume, k: int) -> None:
    """Set the elements that differ between slices, except for the pixels."""
    position = volume.affine[:3, 3] + k * volume.affine[:3, 2]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid_of(dataset.SeriesInstanceUID, k)
    dataset.InstanceNumber = k + 1
    dataset.ImagePositionPatient = _decimals(position)
    dataset.SliceLocation = _decimals(np.array([volume.direction[:, 2] @ position]))[0]


def _header(volume: Volume, attributes: Mapping[str, Any], is_ct: bool) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    column_mm, row_mm, slice_mm = volume.spacing_mm
    dataset = Dataset()
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2" if is_ct else "1.2.840.10008.5.1.4.1.1.4",
        "Modality": "CT" if is_ct else "MR",
        **dict.fromkeys(("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"), FIXED_DATE),
        **dict.fromkeys(("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"), "120000"),
        **dict.fromkeys(("AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "PatientSex"), ""),
        **(CT if is_ct else MR),
        "ImageOrientationPatient": _decimals(volume.direction[:, :2].T.ravel()),
        "PixelSpacing": _decimals(np.array([row_mm, column_mm])),
        "SliceThickness": _decimals(np.array([slice_mm]))[0],
        "SpacingBetweenSlices": _decimals(np.array([slice_mm]))[0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": volume.voxels.shape[1],
        "Columns": volume.voxels.shape[2],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
        **attributes,
    }
    if is_ct:
        del values["SpacingBetweenSlices"]  # not an attribute of the CT image module
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
    dataset.file_meta.ImplementationVersionName = "MEDSTYLE"
    return dataset
