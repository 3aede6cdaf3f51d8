"""Read back what the training of a version has recorded: its curves and its sample pictures."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medstyle.errors import ServiceError
from medstyle.registry.models import NAME
from medstyle.registry.tracking import connect

POINTS = 200  # of a curve: more cannot be told apart on a page
_STEP = re.compile(r"[+%]step[+%](\d+)[+%].*\.png$")  # in MLflow's name of a logged picture

Curves = dict[str, list[tuple[int, float]]]  # name of a loss -> (step, value), by step


class Training(NamedTuple):
    """What a training has recorded.

    Attributes:
        curves: of losses and of the validation, with at most :data:`POINTS` points each.
        samples: (step, PNG file) of a few sample pictures, from the first to the last.
    """

    curves: Curves
    samples: list[tuple[int, Path]]


def training_of(version: str, samples: int = 3) -> Training:
    """Return the curves and up to ``samples`` pictures of a version; empty if it was imported.

    Raises:
        UserError: the registry does not answer.
    """
    mlflow = connect()
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    try:
        run = client.get_run(client.get_model_version(NAME, version).run_id)
        names = [name for name in run.data.metrics if "/" in name and not name.startswith("test/")]
        curves = {
            name: thinned((one.step, one.value) for one in client.get_metric_history(run.info.run_id, name))
            for name in sorted(names)
        }
        found = [(int(step[1]), one.path) for one in client.list_artifacts(run.info.run_id, "images")
                 if (step := _STEP.search(one.path))]  # fmt: skip
        uri = f"runs:/{run.info.run_id}"
        pictures = [(step, Path(mlflow.artifacts.download_artifacts(f"{uri}/{path}")))
                    for step, path in spread(sorted(found), samples)]  # fmt: skip
    except (MlflowException, OSError) as error:
        raise ServiceError(f"the training of version {version} cannot be read ({type(error).__name__})") from None
    return Training(curves, pictures)


def curves_in(table: Path) -> Curves:
    """Return the curves in a ``training.csv``; none if there is no such file."""
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        rows: list[Mapping[str, str]] = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if "/" in name]
    return {name: thinned((int(row["step"]), float(row[name])) for row in rows if row[name]) for name in names}


def thinned(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most :data:`POINTS` points by step, the first and the last among them."""
    return spread(sorted(dict(points).items()), POINTS)


def spread(found: list[Any], most: int) -> list[Any]:
    """Return at most ``most`` entries of a list at even distances, the ends among them.

    Examples:
        >>> spread([1, 2, 3, 4, 5], 3)
        [1, 3, 5]
    """
    if len(found) <= most:
        return found
    return [found[round(n * (len(found) - 1) / (most - 1))] for n in range(most)]
