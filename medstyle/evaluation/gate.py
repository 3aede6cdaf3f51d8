"""Decide whether a model may become champion, by limits and by comparison with the champion."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, NamedTuple

from medstyle.errors import ParamsError
from medstyle.evaluation.statistics import compare, holm, lower_bound
from medstyle.jobs.tables import markdown
from medstyle.params import params

Subjects = Mapping[str, Mapping[str, float]]  # subject -> measure -> value
Comparison = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # measure -> method -> what was found


@params
class GateParams:
    """The requirements for a champion."""

    floors: dict[str, float] = field(default_factory=dict)
    """Measure -> worst acceptable mean over unseen subjects."""
    regression: float = 0.05
    """Largest acceptable loss in a headline measure, as a share of the champion's mean, with 95 %
    confidence."""
    lesion_contrast: float = 0.5
    """Smallest share of known lesions that keep half of their contrast."""
    created: float = 100.0
    """Largest mean number, per volume, of bright structures that are absent from the truth."""
    edge_displacement_mm: float = 5.0
    """Largest mean distance of edges from the true edges."""
    within_2sd: float = 0.02
    """Smallest share of errors within two of the model's own standard deviations."""


class Check(NamedTuple):
    """One condition, the value that was measured, and whether it is met."""

    what: str
    found: str
    needed: str
    passed: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.found}; needed: {self.needed}"


def check_thresholds(metrics: Mapping[str, Any], limits: GateParams) -> list[Check]:
    """Compare the metrics of `evaluate`, as far as measured, with ``limits`` and the baselines.

    Raises:
        UserError: a floor names a measure that the protocol does not have.
    """
    measures, table = metrics["measures"], metrics["tables"][metrics["reference"]]
    model = {name: values["mean"] for name, values in table["model"].items()}
    if unknown := limits.floors.keys() - measures.keys():
        names = ", ".join(measures)
        raise ParamsError(f"register.floors: {min(unknown)!r} is not a measure of {metrics['protocol']}: {names}")
    bounds = [(name, model[name], floor, measures[name]) for name, floor in limits.floors.items()]
    if metrics["lesions"]:
        bounds.append(
            ("lesions with preserved contrast", metrics["lesions"]["survived"], limits.lesion_contrast, "higher")
        )
    for name, better in (("created", "lower"), ("edge_displacement_mm", "lower"), ("within_2sd", "higher")):
        if name in metrics["safety"]:
            bounds.append((name, metrics["safety"][name]["mean"], getattr(limits, name), better))
    checks = [
        Check(name, f"{value:.4g}", f"at least {bound:g}", value >= bound)
        if better == "higher"
        else Check(name, f"{value:.4g}", f"at most {bound:g}", value <= bound)
        for name, value, bound, better in bounds
    ]
    for method, name in ((method, name) for method in table if method != "model" for name in metrics["headline"]):
        ours, theirs = model[name], table[method][name]["mean"]
        won = ours > theirs if measures[name] == "higher" else ours < theirs
        checks.append(Check(f"{name} beside {method}", f"{ours:.4g}", f"better than {theirs:.4g}", won))
    return checks


def check_champion(
    ours: Subjects, theirs: Subjects, metrics: Mapping[str, Any], regression: float, champion: str
) -> list[Check]:
    """Test that a model is not inferior to the champion in any headline measure.

    The test is on paired subjects. The lower bound of the one-sided 95 % bootstrap interval of the
    mean gain over subjects must be at least ``-regression`` times the champion's mean. A single
    subject has no interval; its gain is used instead.
    """
    if ours.keys() != theirs.keys():
        return [Check(champion, "it can be measured on other subjects only", "the same subjects", False)]
    checks = []
    for name in metrics["headline"]:
        sign = 1 if metrics["measures"][name] == "higher" else -1
        gains = [sign * (ours[subject][name] - theirs[subject][name]) for subject in ours]
        margin = regression * abs(sum(values[name] for values in theirs.values()) / len(theirs))
        end = lower_bound(gains)
        found = f"gain {sum(gains) / len(gains):+.4g} on {len(gains)} subjects, 95 % above {end:+.4g}"
        checks.append(Check(f"{name} beside {champion}", found, f"95 % above {-margin:.4g}", end >= -margin))
    return checks


def side_by_side(methods: Mapping[str, Subjects], metrics: Mapping[str, Any]) -> Comparison:
    """Compare the method ``model`` with every other one in the headline measures.

    Returns:
        Measure -> method -> ``mean`` and, for all but the model, the gain of the model over the
        method, above 0 where the model is better: ``gain``, the mean over subjects, with its 95 %
        bootstrap interval, ``low`` and ``high``; the number of subjects on which the model is
        ``better``; and ``p`` of Wilcoxon's test, corrected over the methods (Holm 1979), which is
        None below 6 subjects and where there is no difference.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for name in metrics["headline"]:
        ours = [values[name] for values in methods["model"].values()]
        found[name] = {"model": {"mean": sum(ours) / len(ours)}}
        for method, subjects in methods.items():
            if method == "model":
                continue
            theirs = [subjects[subject][name] for subject in methods["model"]]
            pair = (theirs, ours) if metrics["measures"][name] == "higher" else (ours, theirs)
            apart = compare(*pair)
            found[name][method] = {
                "mean": sum(theirs) / len(theirs),
                "gain": apart["difference"],
                "low": apart["low"],
                "high": apart["high"],
                "better": sum(second > first for first, second in zip(*pair, strict=True)),
                "p": apart["p"],
            }
        tests = {method: p for method, row in found[name].items() if (p := row.get("p")) is not None}
        for method, p in holm(tests).items():
            found[name][method]["p"] = p
    return found


def read_methods(file: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Read each method's values from a `subjects.csv`, for the first reference that it lists."""
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    methods: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if row["reference"] == rows[0]["reference"]:
            values = {k: float(v) for k, v in row.items() if k not in ("subject", "reference", "method")}
            methods.setdefault(row["method"], {})[row["subject"]] = values
    return methods


def page(version: str, checks: Iterable[Check], comparison: Comparison) -> str:
    """Return the checks and the comparison with other methods as Markdown tables."""
    verdicts = [(c.what, c.found, c.needed, "passed" if c.passed else "**failed**") for c in checks]
    rows = [(name, method, *_cells(row)) for name, methods in comparison.items() for method, row in methods.items()]
    return "\n".join(
        [
            f"# Gate of version {version}",
            "",
            markdown(("check", "found", "needed", "verdict"), verdicts),
            "",
            "On the same subjects; gain: of this version (model) over the method, above 0 where it is better.",
            "",
            markdown(("measure", "method", "mean", "gain", "95 % interval", "better on subjects", "p (Holm)"), rows),
            "",
        ]
    )


def _cells(row: Mapping[str, float | None]) -> tuple[str, ...]:
    mean = f"{row['mean']:.4g}"
    if "gain" not in row:
        return mean, "", "", "", ""
    p = "none" if row["p"] is None else f"{row['p']:.3g}"
    return mean, f"{row['gain']:+.4g}", f"{row['low']:+.4g} to {row['high']:+.4g}", f"{row['better']:.0f}", p
