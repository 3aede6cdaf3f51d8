"""Search values of `params.yaml` by validation error: ``python -m flows.tune SPACE``.

The deployment is `tune/on-demand`. SPACE is a JSON object: a key of the section `train` with its
range or its choices, as in

    {"train.training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": true},
     "train.training.batch": {"choices": [2, 4]}}
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medstyle.jobs.tables import markdown

# Before prefect is imported, which reads these: its state stays in the project, and no analytics
# are sent.
os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve()))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from ruamel.yaml import YAML

from flows.train import alone
from medstyle import params
from medstyle.data.store import SliceStore
from medstyle.errors import UserError
from medstyle.registry.tracking import search_run, training_run
from medstyle.stages import train

FOLDER = Path(".medstyle/tune")
SLICES = Path("data/slices")
METRIC = "validation/l1"  # over the same validation images at every measurement


@flow(name="tune")
def tune(
    space: dict[str, dict[str, Any]], trials: int = 20, study: str = "tune", startup: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Train until the study has ``trials`` trials.

    Return the best values and write them as a params file.

    An interrupted search continues when it is started again, and the interrupted training resumes.

    Args:
        space: dotted key of `params.yaml` -> ``{"low", "high"}`` with ``log`` or ``step``, or
            ``{"choices"}``.
        trials: number of finished or pruned trials, including those of earlier runs.
        study: name; each study has its own folder below `.medstyle/tune`.
        startup: number of trials that are not pruned, as a basis for comparison.
        seed: seed of the sampler.
    """
    folder = FOLDER / study
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / "lock"), search_run(study):
        search = _study(study, folder, startup, seed)
        ranges = {key: _distribution(key, spec) for key, spec in space.items()}
        while len(search.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))) < trials:
            _check_data(search)
            trial = search.ask(ranges)
            value = attempt.with_options(task_run_name=f"trial-{trial.number}")(trial, folder)
            search.tell(trial, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)
        if not search.get_trials(states=(TrialState.COMPLETE,)):
            raise UserError("every trial ended early; give startup trials or another space")
        best = {key: _plain(value) for key, value in search.best_params.items()}
        _write_params(best, folder / "params.yaml")
    table = _table(search)
    note = f"`cp {folder}/params.yaml params.yaml` applies the best trial, {search.best_trial.number}."
    create_markdown_artifact(f"{table}\n\n{note}", key="search", description=study)
    return best


@task(cache_policy=NO_CACHE)
def attempt(trial: optuna.Trial, folder: Path) -> float | None:
    """Train with a trial's values in a separate folder; return the last validation error.

    It is None for a trial that ended early.
    """
    log = get_run_logger()
    chosen = {key: _plain(value) for key, value in trial.params.items()}
    key = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]
    place = folder / "trials" / key  # the same for the same values, so that an interrupted training is found again
    place.mkdir(parents=True, exist_ok=True)
    _write_params(chosen, place / "params.yaml")
    settings = params.load(train.Params, "train", place / "params.yaml")
    model, last = place / "translator", float("nan")
    log.info("trial %d: %s", trial.number, chosen)

    try:
        with training_run(settings, model) as send:

            def heard(step: int, values: Mapping[str, Any]) -> None:
                nonlocal last
                send(step, values)
                if METRIC in values:
                    last = values[METRIC]
                    trial.report(last, step)
                    log.info("trial %d: step %d, %s %.4f", trial.number, step, METRIC, last)
                    if trial.should_prune():
                        raise optuna.TrialPruned(f"step {step}: worse than the median")

            train.run(settings, SLICES, model, place / "training.csv", heard, place / "state")
    except (optuna.TrialPruned, UserError) as ended:  # a training that stops itself is treated like a pruned one
        log.info("trial %d ended early: %s", trial.number, ended)
        shutil.rmtree(place / "state", ignore_errors=True)
        return None
    return last


def _study(name: str, folder: Path, startup: int, seed: int) -> optuna.Study:
    """Open the study; trials that an interrupted search has left are queued again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = optuna.create_study(
        storage=f"sqlite:///{folder.resolve()}/study.db",
        study_name=name,
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=startup),
    )
    search.sampler = optuna.samplers.TPESampler(seed=seed + len(search.trials))
    for trial in search.get_trials(states=(TrialState.RUNNING,)):
        search.tell(trial.number, state=TrialState.FAIL)
        search.enqueue_trial(trial.params)
    return search


def _distribution(key: str, spec: Mapping[str, Any]) -> BaseDistribution:
    if not key.startswith("train."):
        raise UserError(f"{key}: only keys of the section train can be searched; the slices stay as they are")
    try:
        if "choices" in spec:  # a study stores strings, not lists
            return CategoricalDistribution([json.dumps(choice) for choice in spec["choices"]])
        whole = all(isinstance(value, int) for value in (spec["low"], spec["high"]))
        return IntDistribution(**spec) if whole else FloatDistribution(**spec)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{key}: {spec} is not a range: {error}; give low and high, or choices") from None


def _plain(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _check_data(search: optuna.Study) -> None:
    """Raise :class:`UserError` without validation pairs, or if data or params have changed."""
    settings, store = params.load(train.Params, "train"), SliceStore.open(SLICES)
    if not len(store.pairs(settings.source, settings.target, "validation")):
        both = f"{settings.source} and {settings.target}"
        raise UserError(f"{SLICES}: no validation subject has both {both}; raise denoise.validation")
    now = hashlib.sha256((SLICES / "index.json").read_bytes() + repr(settings).encode()).hexdigest()
    if search.user_attrs.get("setting", now) != now:
        what = f"{SLICES} or the section train of params.yaml"
        raise UserError(f"{what} changed since the study {search.study_name} began; start one of another name")
    search.set_user_attr("setting", now)


def _write_params(values: Mapping[str, Any], out: Path) -> None:
    """Write `params.yaml` with other ``values``, preserving its comments and order."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    document = yaml.load(Path("params.yaml"))
    for key, value in values.items():
        section = document
        *parents, name = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    yaml.dump(document, out)


def _table(search: optuna.Study) -> str:
    names = list(search.best_params)
    rows = []
    for trial in search.trials:
        value = "" if trial.value is None else f"{trial.value:.4f}"
        chosen = (f"{_plain(trial.params.get(name))}" for name in names)
        rows.append((str(trial.number), trial.state.name.lower(), value, *chosen))
    return markdown(("trial", "state", METRIC, *names), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m flows.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("space", type=json.loads, metavar="SPACE")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--study", default="tune")
    parser.add_argument("--startup", type=int, default=5, help="trials that are not pruned")
    tune(**vars(parser.parse_args()))
