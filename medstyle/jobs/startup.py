"""Start quickly: spare a process the imports that MONAI makes and medstyle never uses."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec

# MONAI imports them, where they are installed, for its own plots, tables, trackers and searches.
UNUSED = ("matplotlib", "mlflow", "optuna", "pandas", "scipy.signal", "skimage", "sklearn")


class _Hidden:
    """Finder of modules that hides the unused packages as long as ``monai`` itself is imported."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Raise ModuleNotFoundError where MONAI asks; leave other questions to other finders."""
        monai = sys.modules.get("monai")
        if name in UNUSED and monai is not None and getattr(monai.__spec__, "_initializing", False):
            raise ModuleNotFoundError(f"hidden from MONAI: {name}", name=name)
        return None


def import_less() -> None:
    """Let MONAI take its optional packages for absent, which spares this process 2 s of imports.

    It is for processes of medstyle's own, such as the command line: where other code uses MONAI's
    plots or handlers in the same process, they must stay visible. Imports outside MONAI, and those
    made after it was imported, find the packages as usual.
    """
    if not any(isinstance(finder, _Hidden) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hidden())


def dask_setup(_worker: object) -> None:
    """Let a worker of Dask import less: it calls this at its start, given ``--preload`` with the
    name of this module."""
    import_less()
