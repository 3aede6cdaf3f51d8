"""Errors that nobody expected never show what was read, wherever the code that reads it lies."""

import importlib
import struct
from collections import Counter
from pathlib import Path

import av
import grimp
import imagecodecs
import numpy as np
import PIL.Image
import pydicom
import pytest
import SimpleITK as sitk

from medstyle.cohort.inventory import Item, inventory
from medstyle.dicom.deidentify import deidentify
from medstyle.dicom.header import NATIVE
from medstyle.dicom.read import read_colour
from medstyle.errors import MARK, NO_FILES_FAULT, Refusal, outline
from medstyle.imaging.picture import read_picture, write_picture
from medstyle.imaging.video import read_frames
from medstyle.imaging.volume import Volume, write_volume
from tests.dicom.conftest import save, slice_header, write_series

READERS = {"pydicom", "SimpleITK", "PIL", "av", "tifffile", "imagecodecs", "highdicom"}
CANARY = "DOE^JANE"


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("medstyle", include_external_packages=True, cache_dir=None)


def test_every_module_that_imports_a_library_for_images_is_marked(graph):
    modules = {
        module for library in READERS & graph.modules for module in graph.find_modules_that_directly_import(library)
    }
    modules -= graph.find_descendants("medstyle.phantom")  # whose patients are invented
    assert len(modules) > 10
    assert [module for module in sorted(modules) if not hasattr(importlib.import_module(module), MARK)] == []


def test_every_module_that_knows_files_of_patients_by_name_is_marked(graph):
    modules = graph.find_modules_that_directly_import("medstyle.cohort.inventory")
    modules |= graph.find_descendants("medstyle.dicom") | graph.find_descendants("medstyle.cohort")
    modules -= {
        module for module in modules if module == "medstyle" or module.startswith(("medstyle.stages", "medstyle.cli"))
    }
    assert [module for module in sorted(modules) if not hasattr(importlib.import_module(module), MARK)] == []


def fail(*arguments, **keywords):
    raise RuntimeError(f"cannot read {CANARY}")


@pytest.mark.parametrize(
    ("library", "name", "file"),
    [(pydicom, "dcmread", "a.dcm"), (sitk, "ReadImage", "a.mha"), (PIL.Image, "open", "a.png"), (av, "open", "a.mp4")],
    ids=["pydicom", "SimpleITK", "Pillow", "PyAV"],
)
def test_what_a_library_says_is_never_shown(library, name, file, tmp_path, monkeypatch):
    """Whether it becomes a verdict or a traceback."""
    (tmp_path / file).write_bytes(b"\0" * 200)
    monkeypatch.setattr(library, name, fail)
    try:
        said = str(inventory([tmp_path]).to_json())
    except RuntimeError as error:
        said = outline(error)
    assert CANARY not in said


def test_a_module_without_the_mark_would_show_it(monkeypatch):
    """So the mark is what hides it, and not the place of the module."""
    space: dict = {"fail": fail}
    exec(compile("def read():\n    fail()", str(Path("medstyle/imaging/new.py").absolute()), "exec"), space)
    for marked in (False, True):
        if marked:
            space[MARK] = True
        with pytest.raises(RuntimeError) as raised:
            space["read"]()
        assert (CANARY in outline(raised.value)) is not marked
    monkeypatch.setenv("MEDSTYLE_DEBUG", "1")
    assert CANARY in outline(raised.value)


DECODERS = {  # where a library is called -> what is called
    "av": "open",
    "gzip": "open GzipFile",
    "imagecodecs": "png_decode",
    "medstyle.dicom.deidentify": "dcmread",
    "medstyle.dicom.elements": "read_dataset read_partial zlib.decompressobj",
    "medstyle.dicom.read": "dcmread get_decoder get_frame apply_modality_lut apply_color_lut",
    "PIL.Image": "open",
    "PIL.ImageFile": "ImageFile.load",
    "PIL.ImageOps": "exif_transpose",
    "SimpleITK": "ImageFileReader.ReadImageInformation ImageFileReader.Execute GetArrayFromImage",
    "tifffile": "TiffFile",
    "zlib": "decompressobj",
}


class PanicError(BaseException):
    """What a library in Rust raises."""


RAISED = [
    ValueError(CANARY), KeyError(CANARY), RuntimeError(CANARY), AssertionError(CANARY), struct.error(CANARY),
    RecursionError(CANARY), MemoryError(), EOFError(), OSError(5, "input/output error", CANARY), PanicError(CANARY),
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one file for each way that pixels are decoded."""
    folder = tmp_path_factory.mktemp("files")
    voxels = np.arange(240).reshape(4, 6, 10)
    for suffix in (".nii.gz", ".mha", ".nrrd", ".nii"):
        write_volume(folder / f"a{suffix}", Volume(voxels.astype(np.float32), np.eye(4), "mr_t1"))
    for name, kind in (("a.png", np.uint8), ("deep.png", np.uint16), ("a.tif", np.uint16), ("a.jpg", np.uint8)):
        write_picture(folder / name, np.zeros((8, 8, 3), kind))
    PIL.Image.new("RGB", (8, 8)).save(folder / "profile.png", icc_profile=imagecodecs.cms_profile("adobergb"))
    with av.open(str(folder / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = 16
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        out.mux(stream.encode())
    for number, syntax in enumerate((*sorted(NATIVE), pydicom.uid.JPEGLSLossless)):

        def change(k: int, dataset: pydicom.Dataset, number: int = number) -> None:
            dataset.SOPInstanceUID, dataset.SeriesInstanceUID = f"2.25.8{number}{k}", f"2.25.9{number}"

        native = syntax if syntax in NATIVE else pydicom.uid.ExplicitVRLittleEndian
        write_series(folder / str(number), voxels.astype(np.uint16), syntax=native, change=change)
        for path in (folder / str(number)).iterdir() if syntax != native else ():
            dataset = pydicom.dcmread(path)
            dataset.compress(syntax)
            dataset.save_as(path)
    shipped = Path(pydicom.__file__).parent / "data/test_files/MR_small_RLE.dcm"
    (folder / "rle.dcm").write_bytes(shipped.read_bytes())
    colour = slice_header(SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Rows=1, Columns=2, PatientID="palette")
    colour.PhotometricInterpretation, colour.SOPInstanceUID = "PALETTE COLOR", "2.25.71"
    colour.BitsAllocated = colour.BitsStored = 8
    colour.HighBit, colour.PixelRepresentation, colour.PixelData = 7, 0, b"\0\1"
    for name in ("Red", "Green", "Blue"):
        setattr(colour, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(colour, f"{name}PaletteColorLookupTableData", bytes(512))
    save(colour, folder / "palette.dcm")
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [2, 0, 16], bytes(4)
    lut = slice_header(SOPInstanceUID="2.25.72", Rows=1, Columns=2, ModalityLUTSequence=[table], PatientID="lut")
    lut.PixelData = bytes(4)
    save(lut, folder / "lut.dcm")
    return folder


def read(item: Item) -> None:
    if item.source == "picture":
        read_picture(item.path)
    elif item.source == "video":
        list(read_frames(item.path))
    elif "COLOUR" in item.flags and item.series is not None:
        list(read_colour(item.series, allow={"E_BURNED_IN"}))
    else:
        item.load("mr_t1", allow=("E_DOMAIN", "E_BURNED_IN"))


def read_all(folder: Path) -> Counter[str]:
    """Read every file and copy every DICOM file; returns how often each verdict was given."""
    found, seen = inventory([folder]), Counter[str]()
    for item in found.volumes:
        try:
            read(item)
            if item.series is not None and "COLOUR" not in item.flags:
                deidentify(item.path)
        except Refusal as refusal:
            seen[refusal.code] += 1
            seen[CANARY] += CANARY in str(refusal)
        else:
            seen["read"] += 1
    return seen + Counter(file.code for file in found.files if file.verdict != "used")


def test_every_file_is_read(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSTYLE_SECRET", "a secret of this test")
    seen = read_all(files)
    assert seen == {"read": 18, "E_BURNED_IN": 1}


@pytest.mark.parametrize("target", [f"{where}.{name}" for where, names in DECODERS.items() for name in names.split()])
def test_whatever_a_decoder_raises_is_the_verdict_on_its_file(
    target: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other files are read."""
    monkeypatch.setenv("MEDSTYLE_SECRET", "a secret of this test")
    every = read_all(files)["read"]
    for error in RAISED:

        def fails(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(target, fails)
            seen = read_all(files)
        assert 4 <= seen["read"] < every, error
        assert not seen[CANARY], error


def test_a_full_disk_is_no_files_fault(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in NO_FILES_FAULT:

        def fails(*_: object, number: int = number, **__: object) -> None:
            raise OSError(number, "full")

        monkeypatch.setattr("SimpleITK.GetArrayFromImage", fails)
        with pytest.raises(OSError, match="full"):
            read_all(files)
