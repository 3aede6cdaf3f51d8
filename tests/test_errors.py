"""Errors that nobody expected never show what was read, wherever the code that reads it lies."""

import importlib
from pathlib import Path

import av
import grimp
import PIL.Image
import pydicom
import pytest
import SimpleITK as sitk

from medstyle.cohort.inventory import inventory
from medstyle.errors import MARK, outline

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
