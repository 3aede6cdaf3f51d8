"""Record MLflow runs of training: live curves and sample images."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medstyle.errors import ServiceError

EXPERIMENT = "medstyle"
KIND = "custom_model_development"  # what the page of the experiment shows first: trainings, not traces
SEND_EVERY = 20  # points per request, because a request per point would cost 10 to 40 ms


def connect() -> Any:
    """Return the mlflow module, connected to ``MLFLOW_TRACKING_URI`` or to ``./mlflow.db``.

    Without a server, artifacts are stored in ``./mlruns``; telemetry is disabled.

    Raises:
        UserError: the server requires another user name or password.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow
    from mlflow.exceptions import MlflowException

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{Path('mlflow.db').resolve()}")
    try:
        known = mlflow.get_experiment_by_name(EXPERIMENT)
    except MlflowException as error:
        if error.get_http_status_code() not in (401, 403):
            raise
        names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise ServiceError(f"the MLflow server refuses this user; set {names}") from None
    if known is None:
        uri = mlflow.get_tracking_uri()
        place = Path("mlruns").resolve().as_uri() if uri.startswith("sqlite") else None
        mlflow.create_experiment(EXPERIMENT, artifact_location=place)
        mlflow.MlflowClient().set_experiment_tag(
            mlflow.get_experiment_by_name(EXPERIMENT).experiment_id, "mlflow.experimentKind", KIND
        )
    mlflow.set_experiment(EXPERIMENT)
    return mlflow


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested params to dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


@contextmanager
def search_run(name: str) -> Iterator[None]:
    """Open the run of a search, under which its trainings are nested.

    The same ``name`` reopens it.
    """
    mlflow = connect()
    tag = "medstyle.search"
    found = mlflow.search_runs(filter_string=f"tags.`{tag}` = '{name}'", output_format="list", max_results=1)
    with mlflow.start_run(run_id=found[0].info.run_id if found else None, run_name=name):
        mlflow.set_tag(tag, name)
        yield


@contextmanager
def training_run(params: Any, translator: Path) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """Open a run and yield the ``log(step, values)`` that training calls: curves or images.

    Numbers become curves, arrays become images. At the end, the run gets the tag
    ``medstyle.weights_sha256`` of the folder ``translator``, by which `register` finds it.
    """
    mlflow = connect()
    from mlflow.entities import Metric

    client = mlflow.MlflowClient()
    with mlflow.start_run(run_name=f"{params.source} to {params.target}", nested=True) as run:
        mlflow.log_params(flatten(asdict(params)))
        if flow := os.environ.get("MEDSTYLE_FLOW_RUN_ID"):
            mlflow.set_tag("prefect.flow_run_id", flow)
        waiting: list[Metric] = []

        def attempt(action: Callable[[], object]) -> None:
            try:
                action()
            except Exception as error:  # a failing tracking server must not stop the training
                print(f"medstyle: tracking failed ({type(error).__name__}); training continues", file=sys.stderr)

        def send() -> None:
            attempt(lambda: client.log_batch(run.info.run_id, metrics=list(waiting)))
            waiting.clear()

        def log(step: int, values: Mapping[str, Any]) -> None:
            import time

            now = int(time.time() * 1000)
            for name, value in values.items():
                if isinstance(value, np.ndarray):
                    key = name.replace("/", "_")
                    attempt(functools.partial(mlflow.log_image, value, key=key, step=step))
                else:
                    waiting.append(Metric(name, float(value), now, step))
            if len(waiting) >= SEND_EVERY:
                send()

        try:
            yield log
        finally:
            send()
        from medstyle.networks.folder import weights_sha256

        mlflow.set_tag("medstyle.weights_sha256", weights_sha256(translator))
