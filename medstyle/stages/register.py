"""Put the measured translator into the registry; the gate decides whether it becomes champion. Idempotent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import field
from pathlib import Path

from medstyle.errors import UserError
from medstyle.params import params
from medstyle.registry.models import conclude, gate
from medstyle.registry.models import register as register_version


@params
class Params:
    """What a champion must be able to do."""

    floors: dict[str, float] = field(default_factory=dict)
    """Measure -> worst acceptable mean over unseen subjects."""
    regression: float = 0.01
    """Largest relative loss against the champion in a headline measure."""
    survival: float = 0.5
    """Least share of known lesions that keep half of their contrast."""


def run(params: Params, model: Path, reports: Path, params_file: Path, log: Callable[[str], None] = print) -> None:
    """Register the translator folder ``model`` with the evaluation in ``reports`` and conclude the gate."""
    metrics = json.loads((reports / "metrics.json").read_text())
    files = [reports / "report.html", reports / "metrics.json", params_file]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: absent; run `medstyle evaluate` first")
    version, new = register_version(model, metrics, files)
    log(f"medstyle version {version}: {'registered' if new else 'these weights are registered already'}")
    reasons = gate(metrics, version, floors=params.floors, regression=params.regression, survival=params.survival)
    log(conclude(version, reasons))
