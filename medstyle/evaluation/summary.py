"""Summarise the measurements of all subjects in ``metrics.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import DataError
from medstyle.evaluation.distances import set_distances
from medstyle.evaluation.gate import Subjects
from medstyle.evaluation.measured import EvaluateParams, Means, Measured, Row
from medstyle.evaluation.protocols import PROTOCOLS
from medstyle.evaluation.safety import Lesion, survival
from medstyle.evaluation.statistics import compare, differences_kept, effect, holm, paired_test, summary, told_apart


def summarise(
    measured: Sequence[Measured], params: EvaluateParams, weights_sha256: str, training: NDArray[np.float64] | None
) -> dict[str, Any]:
    """Return ``metrics.json``, except what comes from pictures, videos and manifests.

    Args:
        measured: one entry per unseen subject.
        params: settings of the evaluation.
        weights_sha256: identifies the model.
        training: the segmenter's features of its training images; None without a segmenter.
    """
    rows = [row for one in measured for row in one.rows]
    names = dict.fromkeys(name for one in measured for name in one.structures)
    lesions = [lesion for one in measured for lesion in one.lesions]
    return {
        **_headline(rows, lesions, params, weights_sha256),
        "safety": means([one.safety for one in measured], params.seed),
        "structures": {
            name: means([one.structures[name] for one in measured if name in one.structures], params.seed)
            for name in names
        },
        "distances": _distances(measured, training, params.seed),
        "sites": _sites([one.descriptors for one in measured if one.descriptors]),
    }


def means(rows: Sequence[Mapping[str, float]], seed: int) -> Means:
    """Return mean, standard deviation and interval of each measure over its subjects."""
    names = sorted({name for one in rows for name in one})
    return {name: summary([one[name] for one in rows if name in one], seed) for name in names}


def _headline(
    rows: Sequence[Row], lesions: list[Lesion], params: EvaluateParams, weights_sha256: str
) -> dict[str, Any]:
    """Return the tables of all methods, and the comparison of the model with the baselines."""
    protocol = PROTOCOLS[params.protocol]
    methods = list(dict.fromkeys(row.method for row in rows))
    references = list(dict.fromkeys(row.reference for row in rows))

    def values(reference: str, method: str, name: str) -> list[float]:
        return [row.measures[name] for row in rows if row.reference == reference and row.method == method]

    main = references[0]
    wins = {}
    for name in protocol.headline:
        sign = 1 if protocol.measures[name] == "higher" else -1
        ours = np.array(values(main, "model", name)) * sign
        best = np.max([np.array(values(main, method, name)) * sign for method in methods if method != "model"], axis=0)
        wins[name] = int((ours > best).sum())
    first = protocol.headline[0]
    count = len(values(main, "model", first))
    sign = 1 if protocol.measures[first] == "higher" else -1
    others = {method: values(main, method, first) for method in methods if method != "model"}
    tests = {method: paired_test(values(main, "model", first), theirs) for method, theirs in others.items()}
    return {
        "protocol": params.protocol,
        "protocol_version": protocol.version,
        "reference": main,
        "subjects": count,
        "weights_sha256": weights_sha256,
        "measures": dict(protocol.measures),
        "headline": list(protocol.headline),
        "better_on_subjects": wins,
        "better_everywhere": all(won == count for won in wins.values()),
        "p_values": holm({method: p for method, p in tests.items() if p is not None}),
        "effects": {method: sign * effect(values(main, "model", first), theirs) for method, theirs in others.items()},
        "tables": {
            reference: {
                method: {name: summary(values(reference, method, name), params.seed) for name in protocol.measures}
                for method in methods
            }
            for reference in references
        },
        "lesions": survival(lesions) if lesions else {},
    }


def _distances(measured: Sequence[Measured], training: NDArray[np.float64] | None, seed: int) -> dict[str, Any]:
    """Return the distances of outputs and baselines to the unseen real targets, by slices."""
    if training is None:
        return {}
    seen = [one for one in measured if one.deep]
    sets = {name: np.concatenate([one.deep[name] for one in seen]) for name in (seen[0].deep if seen else ())}
    if not sets:
        return {}
    real = sets.pop("real")
    table = set_distances(sets, real, training, seed)
    subjects = [one.rows[0].subject for one in seen]
    return {"features": "segmenter", "subjects": subjects, "slices": len(real), "table": table} if table else {}


def _sites(descriptors: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, float]:
    """Return classifier accuracies against targets, and how far subjects' differences are kept."""
    if len(descriptors) < 4:  # a classifier that is tested on one subject needs others to learn from
        return {}
    source, output, target = (np.stack([one[name] for one in descriptors]) for name in ("source", "output", "target"))
    return {
        "told_apart_before": told_apart(source, target),
        "told_apart_after": told_apart(output, target),
        "differences_kept": differences_kept(source, output),
    }


def subgroups(
    rows: Sequence[Row], attributes: Mapping[str, Mapping[str, str]], params: EvaluateParams
) -> dict[str, dict[str, Any]]:
    """Return the model's headline measures by attributes of the subjects, for those that differ."""
    headline = PROTOCOLS[params.protocol].headline
    ours = [row for row in rows if row.method == "model" and row.reference == rows[0].reference]
    by_attribute: dict[str, dict[str, Any]] = {}
    for attribute in sorted({name for of in attributes.values() for name in of}):
        groups: dict[str, list[Row]] = {}
        for row in ours:
            groups.setdefault(str(attributes[row.subject].get(attribute, "unknown")), []).append(row)
        if len(groups) > 1:
            by_attribute[attribute] = {
                value: {name: summary([row.measures[name] for row in of], params.seed) for name in headline}
                | {"subjects": len(of)}
                for value, of in sorted(groups.items())
            }
    return by_attribute


def compare_models(first: Subjects, second: Subjects, protocol: str) -> dict[str, dict[str, float | None]]:
    """Compare two models on the same subjects: measure -> means, difference, interval and p.

    Raises:
        UserError: the subjects differ.
    """
    if first.keys() != second.keys():
        raise DataError("the two models can only be measured on different subjects: do they need other contrasts?")
    return {
        name: compare([row[name] for row in first.values()], [second[key][name] for key in first])
        for name in PROTOCOLS[protocol].measures
    }
