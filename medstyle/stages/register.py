"""Register the measured translator; the gate decides whether it becomes champion. Idempotent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from medstyle.errors import DataError, UserError
from medstyle.evaluation.gate import (
    Check,
    GateParams,
    Subjects,
    check_champion,
    check_thresholds,
    page,
    read_methods,
    side_by_side,
)
from medstyle.params import params
from medstyle.registry.models import (
    add_version,
    conclude,
    evaluation,
    known_subjects,
    model_folder,
    remember_subjects,
    rival,
    version_tags,
)


@params
class Params(GateParams):
    """The requirements for a champion and for how it was made."""

    clean: bool = False
    """Refuse a version that was registered from a working copy with uncommitted changes."""


def run(
    params: Params,
    model: Path,
    reports: Path,
    params_file: Path,
    measure: Callable[[Path], Subjects],
    log: Callable[[str], None] = print,
) -> None:
    """Register the translator folder ``model`` with its ``reports``, and conclude the gate.

    ``measure`` evaluates a translator folder on the current unseen subjects. It is called once for
    a champion that was not measured on the same data with the same code and params.
    """
    files = [*(reports / name for name in ("report.html", "metrics.json", "subjects.csv")), params_file]
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: missing; run `medstyle evaluate` first")
    metrics = json.loads((reports / "metrics.json").read_text())
    version, new = add_version(model, metrics, files)
    log(f"medstyle version {version}: {'registered' if new else 'these weights are registered already'}")
    checks = check_thresholds(metrics, params)
    if params.clean:
        checks.append(_committed(version))
    methods: dict[str, Subjects] = {**read_methods(reports / "subjects.csv")}
    subjects = methods["model"]
    evaluated = evaluation(reports / "subjects.csv")
    if evaluated is not None:
        remember_subjects(version, evaluated, subjects)
    if (champion := rival(version)) is not None:
        name = f"champion {champion}"
        try:
            theirs = _subjects_of(champion, evaluated, measure)
        except (UserError, OSError) as error:
            checks.append(Check(name, f"it cannot be measured on these subjects ({error})", "a comparison", False))
        else:
            checks += check_champion(subjects, theirs, metrics, params.regression, name)
            if theirs.keys() == subjects.keys():
                methods[name] = theirs
    comparison = side_by_side(methods, metrics)
    documents = {"gate.md": page(version, checks, comparison), "comparison.json": json.dumps(comparison, indent=1)}
    log(conclude(version, [str(check) for check in checks if not check.passed], documents, champion))


def _committed(version: str) -> Check:
    found = version_tags(version)
    clean = found.get("git.dirty") == "false" and found.get("git.sha") != "none"
    return Check("working copy", "committed" if clean else "uncommitted changes or no commit", "committed", clean)


def _subjects_of(champion: str, evaluated: str | None, measure: Callable[[Path], Subjects]) -> Subjects:
    if evaluated is None:
        return measure(model_folder(champion))
    subjects: Subjects | None = known_subjects(champion, evaluated)
    if subjects is None:
        subjects = measure(model_folder(champion))
        remember_subjects(champion, evaluated, subjects)
    return subjects
