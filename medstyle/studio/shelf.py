"""Answer what the studio's other pages show: models, the inbox, and the data of the project."""

from __future__ import annotations

import functools
import json
import os
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstyle.errors import ModelError, ParamsError, UserError
from medstyle.imaging.modality import DOMAINS

if TYPE_CHECKING:
    from medstyle.networks.translator import Translator

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

LOCAL, STATION, CARD = Path("models/translator"), Path("data/station"), "MODEL_CARD.md"
# models that come with the package
READY = sorted(path.name for path in Path(__file__).parents[1].glob("ready/*/") if (path / "translator.json").is_file())
METRICS, SLICES = Path("reports/metrics.json"), Path("data/slices")
LATEST, DAYS, ALARM = 500, 30, 0.01  # images of a chart of drift; the last two as in flows.monitor
SAMPLES = 3  # pictures of a training that are shown


def folder_of(name: str, given: str) -> Path:
    """Return the translator folder of a model by its name in the page.

    Args:
        name: ``given``, ``local``, a ready-made one, or the number of a version.
        given: the model that the studio was started with.
    """
    if name == "local":
        return LOCAL
    if name in READY or (name == "given" and not given.startswith("models:/")):
        from medstyle.networks.folder import ready_folder

        return ready_folder(name if name in READY else given)
    if name != "given" and not name.isdigit():
        raise ModelError("this is no model of the studio; reload the page")
    if not registry():
        if LOCAL.is_dir():
            return LOCAL  # of a project that has registered nothing yet
        raise ModelError("no model is here yet: train one with `dvc repro`, or start with --model FOLDER")
    from medstyle.registry.models import NAME, fetch

    return fetch(given if name == "given" else f"models:/{NAME}/{name}")


def translator(name: str, given: str) -> Translator:
    """Load a model, or take the one that was loaded last."""
    folder = folder_of(name, given)
    file = folder / "translator.json"
    return _loaded(folder.resolve(), file.stat().st_mtime_ns if file.is_file() else 0)


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path, changed: int) -> Translator:
    from medstyle.networks.translator import Translator

    return Translator.load(folder)


def registry() -> bool:
    """Return whether there is one: looking into a registry makes it."""
    return "MLFLOW_TRACKING_URI" in os.environ or Path("mlflow.db").is_file()


def models(given: str) -> dict[str, Any]:
    """List the models: the one of the command line, the one in the project, and all versions."""
    from medstyle.registry.models import versions

    rows = versions() if registry() else []
    choices = []
    if given.startswith("models:/"):
        champion = next((row for row in rows if "champion" in row["aliases"].split()), None)
        if champion is not None or not given.endswith("@champion"):
            choices.append(
                {"model": "given", "label": f"Champion, version {champion['version']}" if champion else given}
            )
    else:
        choices.append({"model": "given", "label": f"Folder {given}"})
    if LOCAL.is_dir() and given != str(LOCAL):
        choices.append({"model": "local", "label": f"Folder {LOCAL}"})
    choices += [{"model": name, "label": f"Ready-made: {name}"} for name in READY]
    for row in rows:
        aliases = f" ({row['aliases']})" if row["aliases"] else ""
        choices.append({"model": row["version"], "label": f"Version {row['version']}{aliases}"})
    return {"choices": choices, "versions": rows, "registry": registry()}


def model(given: str, name: str) -> dict[str, Any]:
    """Describe one model: domains, card, results beside the baselines, the gate's verdict."""
    folder = folder_of(name, given)
    try:
        config = json.loads((folder / "translator.json").read_text(encoding="utf-8"))
        source, target, domains = config["source"], config["target"], list(config["domains"])
        architecture = config["architecture"]
    except (OSError, ValueError, KeyError):
        raise ModelError(f"{folder.name}: not a translator folder; train one with `dvc repro train`") from None
    card = folder / CARD
    return {
        "source": {"name": source, "label": DOMAINS[source].label},
        "target": target,
        "targets": [{"name": one, "label": DOMAINS[one].label} for one in domains if one != source] or [target],
        "picture": DOMAINS[source].picture,
        "sharpness": architecture.get("sharpness", 1.0) if architecture.get("refiner") else None,
        "contrasts": [DOMAINS[one].label for one in config.get("contrasts", [])],
        "card": card.read_text(encoding="utf-8") if card.is_file() else "",
        **(_measured(folder) if not name.isdigit() else _registered(name)),
    }


def _measured(folder: Path) -> dict[str, Any]:
    """Return the table and the rates of the last evaluation, if it measured this folder."""
    from medstyle.networks.folder import weights_sha256
    from medstyle.registry.models import safety_rates

    try:
        metrics = json.loads(METRICS.read_text(encoding="utf-8"))
        if metrics["weights_sha256"] != weights_sha256(folder):
            return {}
        rows = metrics["tables"][metrics["reference"]]
        table = {method: {name: row[name]["mean"] for name in metrics["headline"]} for method, row in rows.items()}
        return {"table": table, "rates": safety_rates(metrics), "subjects": metrics["subjects"]}
    except (OSError, ValueError, KeyError):
        return {}


def training(given: str, name: str) -> dict[str, Any]:
    """Return the curves and sample pictures of a model's training, as far as they are known."""
    from medstyle.registry.training import Training, curves_in, training_of

    if name.isdigit():
        found = training_of(name, SAMPLES)
    elif _measured(folder_of(name, given)):  # the reports are of this very model
        pictures = sorted((METRICS.parent / "figures").glob("subject-*.png"))[:SAMPLES]
        found = Training(curves_in(METRICS.parent / "training.csv"), [(-1, path) for path in pictures])
    else:
        found = Training({}, [])
    samples = [
        {
            "step": step if step >= 0 else None,
            "picture": f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}",
        }
        for step, path in found.samples
    ]
    return {"curves": found.curves, "samples": samples}


def _registered(version: str) -> dict[str, Any]:
    from medstyle.registry.models import described

    return described(version)


def promote(given: str, version: str, because: str = "") -> dict[str, Any]:
    """Make a version the champion."""
    from medstyle.registry.models import promote as make_champion

    return {"said": make_champion(version, because or None)}


def rollback(given: str) -> dict[str, Any]:
    """Make the previous champion the champion again."""
    from medstyle.registry.models import rollback as back

    return {"said": back()}


def ledger(given: str) -> dict[str, Any]:
    """List the studies of the inbox: what waits, what is done, what is in quarantine and why."""
    from medstyle.inference.inbox import entries

    return {"folder": str(STATION), "studies": entries(STATION) if STATION.is_dir() else None}


def retry(given: str, key: str) -> dict[str, Any]:
    """Put a study from quarantine back into the inbox."""
    from medstyle.inference.inbox import retry as again

    return {"said": again(STATION, key)}


def data(given: str) -> dict[str, Any]:
    """Show what the raw data of the project hold: domains, thumbnails, what is left out, splits."""
    from medstyle.params import load
    from medstyle.project.survey import survey
    from medstyle.project.thumbnails import gallery, table
    from medstyle.stages.ingest import Params

    if not Path("params.yaml").is_file():
        raise ParamsError("no params.yaml here, so no project; make one with `medstyle init`")
    found = survey(Path(load(Params, "ingest").source))
    shown = gallery(found)
    return {
        "lead": shown.lead,
        "domains": [domain._asdict() for domain in shown.domains],
        "left": shown.left,
        "table": table(found),
        "splits": _splits(),
    }


def drift(given: str) -> dict[str, Any]:
    """Show how much the images of the inbox have resembled the training images, over time.

    The test is that of ``flows.monitor``.
    """
    if not STATION.is_dir():
        return {"points": [], "folder": str(STATION)}
    from medstyle.inference.drift import limit_of, recent, scores_of

    model = translator("given", given)
    points = scores_of(STATION, model)[-LATEST:]
    test = recent(STATION, model, DAYS)
    return {"points": points, "limit": limit_of(model), "days": DAYS, "alarm": ALARM, **test._asdict()}


def _splits() -> dict[str, dict[str, int]]:
    """Return how many subjects of each domain are in each part of the slice store."""
    from medstyle.data.store import SliceStore

    try:
        rows = SliceStore.open(SLICES).index.rows
    except UserError:
        return {}
    return {
        part: {name: len({row.subject for row in of}) for name, of in domains.items()} for part, domains in rows.items()
    }


ASKED: Mapping[str, Callable[..., dict[str, Any]]] = {
    "models": models,
    "model": model,
    "training": training,
    "promote": promote,
    "rollback": rollback,
    "ledger": ledger,
    "retry": retry,
    "data": data,
    "drift": drift,
}
