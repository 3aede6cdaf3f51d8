"""Every element of the pixel modules is applied, checked, refused or without effect, as listed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medstyle.dicom.read import read_series
from medstyle.dicom.scan import scan
from medstyle.errors import Refusal
from medstyle.imaging.volume import Volume
from tests.conftest import ROOT
from tests.dicom.conftest import write_series
from tests.imaging.test_volume_header import follows, listed

STORED = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5) * 17
Changed = Callable[[Volume, Volume], bool]


def values(function: Callable[[np.ndarray], np.ndarray]) -> Changed:
    return lambda before, after: np.allclose(after.voxels, function(before.voxels))


def spacing(*mm: float) -> Changed:
    return lambda before, after: np.allclose(after.spacing_mm, mm)


def item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


TABLE = item(LUTDescriptor=[1024, 0, 16], ModalityLUTType="US", LUTData=(2 * np.arange(1024, dtype="<u2")).tobytes())
VOI = item(LUTDescriptor=[2, 0, 16], LUTData=bytes(4))

# element -> another value (a dictionary: of several elements), and a code, a change, or None
ELEMENTS: dict[str, tuple[Any, str | Changed | None]] = {
    "SamplesPerPixel": (2, "E_DECODE"),
    "PhotometricInterpretation": ("MONOCHROME1", values(lambda v: 4095 - v)),
    "Rows, Columns": ({"Rows": 9}, "E_TRUNCATED"),
    "BitsAllocated": (32, "E_TRUNCATED"),
    "BitsStored, HighBit": ({"BitsStored": 8, "HighBit": 7}, values(lambda v: v % 256)),
    "PixelRepresentation": (
        {"PixelRepresentation": 1, "BitsStored": 8, "HighBit": 7},
        values(lambda v: v.astype(np.uint8).view(np.int8).astype(float)),
    ),
    "PlanarConfiguration": (1, None),
    "PixelAspectRatio": ([3, 1], None),
    "SmallestImagePixelValue, LargestImagePixelValue": ({"SmallestImagePixelValue": 9}, None),
    "PixelPaddingValue, PixelPaddingRangeLimit": (
        {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 100}, values(lambda v: np.where(v <= 100, 0, v)),
    ),
    "PixelDataProviderURL": ("http://localhost/junk", None),
    "ICCProfile, ColorSpace": ({"ColorSpace": "SRGB"}, None),
    "NumberOfFrames": (2, "E_TRUNCATED"),
    "RescaleSlope, RescaleIntercept": ({"RescaleSlope": 2, "RescaleIntercept": 3}, values(lambda v: 2 * v + 3)),
    "RescaleType": ("US", None),
    "ModalityLUTSequence": ([TABLE], values(lambda v: 2 * v)),
    "VOILUTSequence, VOILUTFunction": ({"VOILUTSequence": [VOI]}, None),
    "WindowCenter, WindowWidth": ({"WindowCenter": 7, "WindowWidth": 7}, None),
    "PresentationLUTShape": ("INVERSE", None),
    "PixelIntensityRelationship, PixelIntensityRelationshipSign": ({"PixelIntensityRelationship": "LOG"}, None),
    "RealWorldValueMappingSequence": ([item(RealWorldValueSlope=7.0, RealWorldValueIntercept=7.0)], None),
    "LossyImageCompression": ("01", None),
    "BurnedInAnnotation": ("YES", "E_BURNED_IN"),
    "ImageType": (["ORIGINAL", "PRIMARY", "LOCALIZER"], "E_LOCALIZER"),
    "ImagePositionPatient": ([0, 0, 50], "E_4D"),
    "ImageOrientationPatient": ([1, 0, 0, 1, 0, 0], "E_NO_GEOMETRY"),
    "PixelSpacing": ([3, 4], spacing(4, 3, 2)),
    "ImagerPixelSpacing": ([3, 4], None),
    "SliceThickness": (7, None),
    "SpacingBetweenSlices": (7, None),
    "SliceLocation": (7, None),
    "PatientPosition": ("FFP", None),
    "GantryDetectorTilt": (20, None),
    "InstanceNumber": (7, None),
}  # fmt: skip
CT_ELEMENTS = {
    "RescaleSlope, RescaleIntercept": ({"RescaleSlope": None}, "E_UNIT"),
    "RescaleType": ("OD", "E_UNIT"),
}
OTHER = {"FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"}


def series(folder: Path, name: str = "", value: Any = None, modality: str = "MR") -> Volume:
    """Write and read a series whose elements ``name`` have another value."""

    def change(k: int, dataset: Dataset) -> None:
        if modality == "CT":
            dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        for keyword, one in (value if isinstance(value, dict) else {name: value}).items():
            if keyword:
                setattr(dataset, keyword, one)

    write_series(folder, STORED, bits=12, change=change, modality=modality)
    found = scan([folder])
    if not found.series:
        raise Refusal(found.files[0].code, found.files[0].reason)
    [one] = found.series
    return read_series(one, "ct" if modality == "CT" else "mr_t1")


@pytest.mark.parametrize("name", ELEMENTS)
def test_an_element_has_its_effect(name: str, tmp_path: Path) -> None:
    value, expected = ELEMENTS[name]
    before = series(tmp_path / "a")
    follows(lambda: series(tmp_path / "b", name, value), before, expected)


@pytest.mark.parametrize("name", CT_ELEMENTS)
def test_ct_needs_its_unit(name: str, tmp_path: Path) -> None:
    value, code = CT_ELEMENTS[name]
    series(tmp_path / "a", modality="CT")
    with pytest.raises(Refusal, match=code):
        series(tmp_path / "b", name, value, modality="CT")


def test_the_reference_lists_every_element() -> None:
    text = (ROOT / "docs/reference/headers.md").read_text()
    section = text.split("## DICOM\n")[1].split("\n## ")[0]
    rows = listed(section)
    words = {True: {"applied"}, False: {"checked", "refused"}}
    for names, (_, expected) in ELEMENTS.items():
        for name in names.split(", "):
            assert rows.pop(name) in ({"irrelevant"} if expected is None else words[callable(expected)]), name
    assert rows.keys() == OTHER
