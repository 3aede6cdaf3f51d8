"""medstyle: train, measure, register and serve style-transfer models for scans and pictures.

The public names are imported on first use, so that ``import medstyle`` and ``medstyle --help`` stay
fast.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medstyle.client import Answer, Client
    from medstyle.cohort.inventory import Inventory, Item, inventory
    from medstyle.errors import (
        Code,
        DataError,
        DiskFull,
        MissingPackage,
        ModelError,
        OutputError,
        ParamsError,
        Refusal,
        ServiceError,
        TrainingError,
        UserError,
    )
    from medstyle.evaluation.baselines import BASELINES, histogram_matching
    from medstyle.imaging.modality import DOMAINS, Fingerprint, Modality
    from medstyle.imaging.picture import Pixels, read_picture, write_picture
    from medstyle.imaging.verdict import FileVerdict
    from medstyle.imaging.volume import Volume, read_volume, write_volume
    from medstyle.inference.files import About, Request, translate_path
    from medstyle.inference.ood import Verdict
    from medstyle.inference.render_options import RenderOptions
    from medstyle.inference.translate import Reference, Translation, translate_picture, translate_volume
    from medstyle.networks.conformal import Interval
    from medstyle.networks.translator import Translator, TranslatorConfig

__version__ = _version("medstyle")

_WHERE = {
    "About": "inference.files",
    "Answer": "client",
    "BASELINES": "evaluation.baselines",
    "Client": "client",
    "Code": "errors",
    "DOMAINS": "imaging.modality",
    "DataError": "errors",
    "DiskFull": "errors",
    "FileVerdict": "imaging.verdict",
    "Fingerprint": "imaging.modality",
    "Interval": "networks.conformal",
    "Inventory": "cohort.inventory",
    "Item": "cohort.inventory",
    "MissingPackage": "errors",
    "Modality": "imaging.modality",
    "ModelError": "errors",
    "OutputError": "errors",
    "ParamsError": "errors",
    "Pixels": "imaging.picture",
    "Reference": "inference.translate",
    "Refusal": "errors",
    "RenderOptions": "inference.render_options",
    "Request": "inference.files",
    "ServiceError": "errors",
    "TrainingError": "errors",
    "Translation": "inference.translate",
    "Translator": "networks.translator",
    "TranslatorConfig": "networks.translator",
    "UserError": "errors",
    "Verdict": "inference.ood",
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
    "About",
    "Answer",
    "Client",
    "Code",
    "DataError",
    "DiskFull",
    "FileVerdict",
    "Fingerprint",
    "Interval",
    "Inventory",
    "Item",
    "MissingPackage",
    "Modality",
    "ModelError",
    "OutputError",
    "ParamsError",
    "Pixels",
    "Reference",
    "Refusal",
    "RenderOptions",
    "Request",
    "ServiceError",
    "TrainingError",
    "Translation",
    "Translator",
    "TranslatorConfig",
    "UserError",
    "Verdict",
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
