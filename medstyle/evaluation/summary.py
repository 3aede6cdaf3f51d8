"""What single subjects' measures say together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medstyle.evaluation.distances import set_distances
from medstyle.evaluation.measured import Params
from medstyle.evaluation.protocols import PROTOCOLS, Protocol
from medstyle.evaluation.safety import (
    Lesion,
    survival,
)
from medstyle.evaluation.scans import _Scans
from medstyle.evaluation.statistics import differences_kept, effect, holm, paired_test, summary, told_apart
from medstyle.networks.translator import Translator


def _means(rows: list[dict[str, float]], seed: int) -> dict[str, dict[str, float]]:
    names = sorted({name for one in rows for name in one})
    return {name: summary([one[name] for one in rows if name in one], seed) for name in names}


def _distances(deep: list[dict[str, NDArray]], measure: object, subjects: list[str], seed: int) -> dict[str, Any]:
    """Return how far outputs and baselines lie from the unseen real targets, slices as samples."""
    if not isinstance(measure, _Scans) or measure.seen is None:
        return {}
    sets = {name: np.concatenate([one[name] for one in deep]) for name in deep[0]}
    real = sets.pop("real")
    table = set_distances(sets, real, measure.seen, seed)
    return {"features": "segmenter", "subjects": subjects, "slices": len(real), "table": table} if table else {}


def _sites(features: list[dict[str, NDArray]]) -> dict[str, float]:
    """Tell how well sources and outputs can be told from targets, and whether subjects keep their differences."""
    if len(features) < 4:  # a classifier that is tested on one subject must learn from some
        return {}
    source, output, target = (np.stack([one[name] for one in features]) for name in ("source", "output", "target"))
    return {
        "told_apart_before": told_apart(source, target),
        "told_apart_after": told_apart(output, target),
        "differences_kept": differences_kept(source, output),
    }


def _subgroups(
    rows: list[dict[str, Any]], items: list[dict[str, Any]], source: str, protocol: Protocol, seed: int
) -> dict[str, dict[str, Any]]:
    """Return the model's headline measures by what the manifest says of the scanner, where that differs."""
    scanner = {item["subject"]: item.get("scanner", {}) for item in items if item["domain"] == source}
    ours = [row for row in rows if row["method"] == "model" and row["reference"] == rows[0]["reference"]]
    found: dict[str, dict[str, Any]] = {}
    for attribute in sorted({name for of in scanner.values() for name in of}):
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in ours:
            groups.setdefault(str(scanner[row["subject"]].get(attribute, "unknown")), []).append(row)
        if len(groups) > 1:
            found[attribute] = {
                value: {name: summary([row[name] for row in members], seed) for name in protocol.headline}
                | {"subjects": len(members)}
                for value, members in sorted(groups.items())
            }
    return found


def _summarise(
    rows: list[dict[str, Any]], found: list[Lesion], params: Params, translator: Translator
) -> dict[str, Any]:
    protocol = PROTOCOLS[params.protocol]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    references = list(dict.fromkeys(row["reference"] for row in rows))

    def values(reference: str, method: str, name: str) -> list[float]:
        return [row[name] for row in rows if row["reference"] == reference and row["method"] == method]

    main = references[0]
    wins = {}
    for name in protocol.headline:
        sign = 1 if protocol.measures[name] == "higher" else -1
        ours = np.array(values(main, "model", name)) * sign
        best = np.max([np.array(values(main, method, name)) * sign for method in methods if method != "model"], axis=0)
        wins[name] = int((ours > best).sum())
    count = len(values(main, "model", protocol.headline[0]))
    first = protocol.headline[0]
    sign = 1 if protocol.measures[first] == "higher" else -1
    others = {method: values(main, method, first) for method in methods if method != "model"}
    tests = {method: paired_test(values(main, "model", first), theirs) for method, theirs in others.items()}
    return {
        "protocol": params.protocol,
        "protocol_version": protocol.version,
        "reference": main,
        "subjects": count,
        "weights_sha256": translator.sha256,
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
        "lesions": survival(found) if found else {},
    }
