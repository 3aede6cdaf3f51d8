"""Every field of a header is applied, checked, refused or without effect, as the docs list it."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medstyle.errors import Refusal
from medstyle.imaging.volume import Volume, read_volume, write_volume
from tests.conftest import ROOT

VOXELS = np.arange(1, 61, dtype=np.int16).reshape(3, 4, 5)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
Changed = Callable[[Volume, Volume], bool]


def values(function: Callable[[np.ndarray], np.ndarray]) -> Changed:
    return lambda before, after: np.allclose(after.voxels, function(before.voxels))


def spacing(*mm: float) -> Changed:
    return lambda before, after: np.allclose(after.spacing_mm, mm)


def origin(*mm: float) -> Changed:
    return lambda before, after: np.allclose(after.origin_mm, mm)


# field -> where it is, its type, another value, and what follows: a code, a change, or None
NIFTI: dict[str, tuple[int, str, object, str | Changed | None]] = {
    "sizeof_hdr": (0, "i", 540, "E_DECODE"),
    "data_type": (4, "10s", b"JUNK", None),
    "db_name": (14, "18s", b"JUNK", None),
    "extents": (32, "i", 7, None),
    "session_error": (36, "h", 7, None),
    "regular": (38, "c", b"x", None),
    "dim_info": (39, "B", 57, None),
    "dim": (40, "8h", (3, 5, 4, 9, 1, 1, 1, 1), "E_TRUNCATED"),
    "intent_p1, intent_p2, intent_p3": (56, "3f", (7, 7, 7), None),
    "intent_code": (68, "h", 1002, None),
    "datatype": (70, "h", 512, values(lambda v: v)),
    "bitpix": (72, "h", 8, "E_DECODE"),
    "slice_start": (74, "h", 1, None),
    "pixdim": (76, "8f", (1, 1, 1.5, 3, 1, 1, 1, 1), "E_MIXED_ORIENTATION"),
    "vox_offset": (108, "f", 354.0, "E_TRUNCATED"),
    "scl_slope, scl_inter": (112, "2f", (2.0, 3.0), values(lambda v: 2 * v + 3)),
    "slice_end": (120, "h", 2, None),
    "slice_code": (122, "B", 3, None),
    "xyzt_units": (123, "B", 3, spacing(1e-3, 1.5e-3, 2e-3)),
    "cal_max, cal_min": (124, "2f", (9, 5), None),
    "slice_duration": (132, "f", 7.0, None),
    "toffset": (136, "f", 7.0, None),
    "glmax, glmin": (140, "2i", (9, 5), None),
    "descrip": (148, "80s", b"JUNK", None),
    "aux_file": (228, "24s", b"JUNK", None),
    "qform_code, sform_code": (252, "2h", (0, 0), "E_NO_GEOMETRY"),
    "quatern_b, quatern_c, quatern_d": (256, "3f", (0, 0, 0), "E_MIXED_ORIENTATION"),
    "qoffset_x, qoffset_y, qoffset_z": (268, "3f", (9, 9, 9), "E_MIXED_ORIENTATION"),
    "srow_x, srow_y, srow_z": (280, "12f", (-2, 0, 0, 0, 0, -2, 0, 0, 0, 0, 2, 0), "E_MIXED_ORIENTATION"),
    "intent_name": (328, "16s", b"JUNK", None),
    "magic": (344, "4s", b"ni1\0", "E_DECODE"),
}

# field -> a line, and what follows; the line replaces that of the same field
META: dict[str, tuple[str, str | Changed | None]] = {
    "ObjectType": ("ObjectType = Tube", "E_DECODE"),
    "ObjectSubType": ("ObjectSubType = Junk", None),
    "NDims": ("NDims = 2", "E_NO_GEOMETRY"),
    "Name": ("Name = Junk", None),
    "ID, ParentID": ("ID = 7", None),
    "Comment": ("Comment = Junk", None),
    "AcquisitionDate": ("AcquisitionDate = 20260101", None),
    "Color": ("Color = 1 0 0 1", None),
    "BinaryData": ("BinaryData = False", "E_DECODE"),
    "BinaryDataByteOrderMSB, ElementByteOrderMSB": (
        "BinaryDataByteOrderMSB = True", values(lambda v: v.astype("<i2").view(">i2").astype(float)),
    ),
    "CompressedData": ("CompressedData = True", "E_DECODE"),
    "CompressedDataSize": ("CompressedDataSize = 7", None),
    "CompressionLevel": ("CompressionLevel = 7", None),
    "TransformMatrix, Rotation, Orientation": (
        "TransformMatrix = 1 0 0 0 0.5 0 0 0 1", "E_NO_GEOMETRY",
    ),
    "Offset, Position, Origin": ("Offset = 7 8 9", origin(7, 8, 9)),
    "CenterOfRotation": ("CenterOfRotation = 7 8 9", "E_NO_GEOMETRY"),
    "AnatomicalOrientation": ("AnatomicalOrientation = LPI", None),
    "DistanceUnits": ("DistanceUnits = cm", "E_NO_GEOMETRY"),
    "ElementSpacing": ("ElementSpacing = 3 4 5", spacing(3, 4, 5)),
    "ElementSize": ("ElementSize = 3 4 5", None),
    "DimSize": ("DimSize = 5 4 9", "E_TRUNCATED"),
    "HeaderSize": ("HeaderSize = 7", "E_DECODE"),
    "Modality": ("Modality = MET_MOD_CT", None),
    "SequenceID": ("SequenceID = 7 7 7", None),
    "ElementMin, ElementMax": ("ElementMin = 7", None),
    "ElementNumberOfChannels": ("ElementNumberOfChannels = 3", "E_COLOR"),
    "ElementType": ("ElementType = MET_FLOAT", "E_TRUNCATED"),
    "ElementNBits": ("ElementNBits = 12", None),
    "ElementToIntensityFunctionSlope, ElementToIntensityFunctionOffset": (
        "ElementToIntensityFunctionSlope = 2", "E_DECODE",
    ),
    "ElementDataFile": ("ElementDataFile = ../a.raw", "E_DETACHED"),
}  # fmt: skip

NRRD: dict[str, tuple[str, str | Changed | None]] = {
    "dimension": ("dimension: 2", "E_DECODE"),
    "type": ("type: float", "E_TRUNCATED"),
    "block size": ("block size: 7", "E_DECODE"),
    "sizes": ("sizes: 5 4 9", "E_TRUNCATED"),
    "encoding": ("encoding: bzip2", "E_DECODE"),
    "endian": ("endian: big", values(lambda v: v.astype("<i2").view(">i2").astype(float))),
    "space": ("space: right-anterior-superior", origin(-7, -8, 9)),
    "space dimension": ("space dimension: 3", "E_DECODE"),
    "space directions": ("space directions: (3,0,0) (0,4,0) (0,0,5)", spacing(3, 4, 5)),
    "space origin": ("space origin: (1,2,3)", origin(1, 2, 3)),
    "space units": ('space units: "cm" "cm" "cm"', "E_NO_GEOMETRY"),
    "measurement frame": ("measurement frame: (0,1,0) (1,0,0) (0,0,1)", None),
    "spacings": ("spacings: 7 7 7", "E_DECODE"),
    "thicknesses": ("thicknesses: 7 7 7", None),
    "axis mins, axis maxs": ("axis mins: 7 7 7", "E_DECODE"),
    "centers, centerings": ("centers: node node node", None),
    "kinds": ("kinds: domain domain list", "E_DECODE"),
    "labels": ('labels: "a" "b" "c"', None),
    "units": ('units: "cm" "cm" "cm"', "E_DECODE"),
    "content": ("content: junk", None),
    "number": ("number: 7", None),
    "min, max": ("min: 7", None),
    "old min, old max": ("old min: 7", "E_DECODE"),
    "sample units": ("sample units: junk", None),
    "line skip, byte skip": ("byte skip: 7", "E_DECODE"),
    "data file": ("data file: ../a.raw", "E_DETACHED"),
}


def text_file(path: Path, line: str = "") -> Path:
    """Write a header and 120 bytes of voxels; ``line`` replaces that of its field, or is added."""
    meta = path.suffix == ".mha"
    lines = (
        ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False",
         "TransformMatrix = 1 0 0 0 1 0 0 0 1", "Offset = 0 0 0", "ElementSpacing = 1 1.5 2", "DimSize = 5 4 3",
         "ElementType = MET_SHORT"]
        if meta
        else ["NRRD0005", "type: short", "dimension: 3", "space: left-posterior-superior", "sizes: 5 4 3",
              "space directions: (1,0,0) (0,1.5,0) (0,0,2)", "space origin: (7,8,9)", "endian: little", "encoding: raw"]
    )  # fmt: skip
    sign = "=" if meta else ":"
    field = line.partition(sign)[0].strip()
    names = [one.partition(sign)[0].strip() for one in lines]
    if field in names:
        lines[names.index(field)] = line
    else:
        lines += [line] * bool(line)
    if meta and field != "ElementDataFile":
        lines.append("ElementDataFile = LOCAL")
    path.write_bytes("\n".join(lines).encode() + b"\n" * (1 if meta else 2) + VOXELS.tobytes())
    return path


def nifti_file(path: Path) -> Path:
    image = nibabel.Nifti1Image(VOXELS.T, np.diag([-1, -1.5, 2.0, 1]))
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.to_filename(path)
    return path


def follows(read: Callable[[], Volume], before: Volume, expected: str | Changed | None) -> None:
    """Check what follows from another value of a field: a code, a change, or nothing."""
    if isinstance(expected, str):
        with pytest.raises(Refusal) as raised:
            read()
        assert raised.value.code == expected
        return
    after = read()
    if expected is None:
        np.testing.assert_array_equal(after.voxels, before.voxels)
        np.testing.assert_array_equal(after.affine, before.affine)
    else:
        assert expected(before, after)


@pytest.mark.parametrize("field", NIFTI)
def test_a_field_of_nifti_has_its_effect(field: str, tmp_path: Path) -> None:
    offset, kind, value, expected = NIFTI[field]
    path = nifti_file(tmp_path / "a.nii")
    before, data = read_volume(path, "mr_t1"), bytearray(path.read_bytes())
    struct.pack_into(f"<{kind}", data, offset, *(value if isinstance(value, tuple) else (value,)))
    path.write_bytes(data)
    follows(lambda: read_volume(path, "mr_t1"), before, expected)


@pytest.mark.parametrize(("suffix", "field"), [(".mha", f) for f in META] + [(".nrrd", f) for f in NRRD])
def test_a_field_of_a_text_header_has_its_effect(suffix: str, field: str, tmp_path: Path) -> None:
    line, expected = {".mha": META, ".nrrd": NRRD}[suffix][field]
    before = read_volume(text_file(tmp_path / f"a{suffix}"), "mr_t1")
    path = text_file(tmp_path / f"b{suffix}", line)
    follows(lambda: read_volume(path, "mr_t1"), before, expected)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_field_that_comes_twice_is_refused(suffix: str, tmp_path: Path) -> None:
    """Readers differ in which of them they take."""
    path = text_file(tmp_path / f"a{suffix}")
    line = {".mha": b"ElementSpacing = 1 1.5 2\n", ".nrrd": b"space origin: (7,8,9)\n"}[suffix]
    path.write_bytes(path.read_bytes().replace(line, 2 * line))
    with pytest.raises(Refusal, match="twice"):
        read_volume(path, "mr_t1")


def test_the_fields_of_nifti_cover_its_header() -> None:
    sizes = {offset: struct.calcsize(f"<{kind}") for offset, kind, *_ in NIFTI.values()}
    position = 0
    for offset in sorted(sizes):
        assert offset == position
        position += sizes[offset]
    assert position == 348


def listed(section: str) -> dict[str, str]:
    """Return the effect of each field in a table of the reference."""
    rows = re.findall(r"^\| (`.*?`) \| (\w+)", section, re.MULTILINE)
    return {name: effect for names, effect in rows for name in re.findall("`([^`]+)`", names)}


@pytest.mark.parametrize(("title", "table"), [("NIfTI-1", NIFTI), ("MetaImage", META), ("NRRD", NRRD)])
def test_the_reference_lists_every_field(title: str, table: dict[str, tuple]) -> None:
    text = (ROOT / "docs/reference/headers.md").read_text()
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = listed(section)
    words = {True: {"applied"}, False: {"checked", "refused"}}
    for fields, row in table.items():
        for field in fields.split(", "):
            assert rows.pop(field) in ({"irrelevant"} if row[-1] is None else words[callable(row[-1])]), field
    assert not rows


def test_what_is_written_says_everything(tmp_path: Path) -> None:
    for suffix in (".nii", ".mha", ".nrrd"):
        write_volume(tmp_path / f"a{suffix}", Volume(VOXELS.astype(np.float32), AFFINE, "mr_t1"))
        again = read_volume(tmp_path / f"a{suffix}", "mr_t1")
        np.testing.assert_array_equal(again.voxels, VOXELS)
        np.testing.assert_allclose(again.affine, AFFINE)
