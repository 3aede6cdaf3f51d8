"""The command line's processes import less, and lose nothing that medstyle uses."""

import subprocess
import sys

from medstyle.jobs.startup import UNUSED

SCRIPT = """
import importlib, json, pkgutil, sys
from medstyle.jobs.startup import UNUSED, import_less
import_less()
import_less()
import monai
loaded = [name for name in UNUSED if name in sys.modules]
import medstyle
for module in pkgutil.walk_packages(medstyle.__path__, "medstyle."):
    if not module.name.startswith("medstyle.project.template"):
        importlib.import_module(module.name)
from monai.transforms import Orientation, Spacing
later = [name for name in UNUSED if not importlib.import_module(name)]
print(json.dumps([loaded, later, [type(finder).__name__ for finder in sys.meta_path].count("_Hidden")]))
"""


def test_monai_imports_none_of_what_is_unused_and_everything_else_imports_all_of_it():
    """All modules of medstyle import after a MONAI that took its optional packages for absent."""
    result = subprocess.run([sys.executable, "-c", SCRIPT], check=True, stdout=subprocess.PIPE, text=True)
    assert result.stdout.splitlines()[-1] == "[[], [], 1]"


def test_the_names_are_packages_that_monai_does_import_by_itself():
    """A name that MONAI no longer imports is to be deleted from the list."""
    script = f"import monai, sys; print([name for name in {UNUSED!r} if name not in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True)
    assert result.stdout.strip() == "[]"
