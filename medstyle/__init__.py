"""medstyle: from a folder of scans or pictures to a trained, measured, registered and served style-transfer model.

The public names load on first use, so that ``import medstyle`` and ``medstyle --help`` stay quick.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medstyle.client import Client
    from medstyle.cohort.inventory import inventory
    from medstyle.errors import Refusal, UserError
    from medstyle.evaluation.baselines import BASELINES, histogram_matching
    from medstyle.imaging.modality import DOMAINS
    from medstyle.imaging.picture import read_picture, write_picture
    from medstyle.imaging.volume import Volume, read_volume, write_volume
    from medstyle.inference.files import translate_path
    from medstyle.inference.translate import translate_picture, translate_volume
    from medstyle.networks.translator import Translator

__version__ = _version("medstyle")

_WHERE = {
    "BASELINES": "evaluation.baselines",
    "Client": "client",
    "DOMAINS": "imaging.modality",
    "Refusal": "errors",
    "Translator": "networks.translator",
    "UserError": "errors",
    "Volume": "imaging.volume",
    "histogram_matching": "evaluation.baselines",
    "inventory": "cohort.inventory",
    "read_picture": "imaging.picture",
    "read_volume": "imaging.volume",
    "translate_path": "inference.files",
    "translate_picture": "inference.translate",
    "translate_volume": "inference.translate",
    "write_picture": "imaging.picture",
    "write_volume": "imaging.volume",
}

__all__ = [
    "BASELINES",
    "DOMAINS",
    "Client",
    "Refusal",
    "Translator",
    "UserError",
    "Volume",
    "histogram_matching",
    "inventory",
    "read_picture",
    "read_volume",
    "translate_path",
    "translate_picture",
    "translate_volume",
    "write_picture",
    "write_volume",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'medstyle' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"medstyle.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
