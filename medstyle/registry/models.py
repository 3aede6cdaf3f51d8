"""Register, gate, promote, roll back, download and describe model versions."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from medstyle.errors import ModelError, UserError
from medstyle.jobs.tables import markdown
from medstyle.registry.tracking import connect

NAME = "medstyle"
CARD = "MODEL_CARD.md"
LOCK, LOCK_S = "medstyle.promotion", 30.0


def lineage(lock: Path = Path("dvc.lock"), stage: str = "train") -> dict[str, str]:
    """Return the origin of the weights: git commit, dirty flag, and a hash of the inputs.

    The hash covers only the part of ``dvc.lock`` that training depends on, because later stages
    rewrite the lock. The dirty flag ignores the lock and the metrics, because the run itself writes
    them.
    """
    import yaml

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    dirty = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!reports/metrics.json")
    facts = {"git.sha": git("rev-parse", "HEAD") or "none", "git.dirty": str(bool(dirty)).lower()}
    try:
        stages = yaml.safe_load(lock.read_text())["stages"]
        made = {out["path"]: name for name, entry in stages.items() for out in entry.get("outs", [])}
        todo, seen = [stage], {}
        while todo:
            name = todo.pop()
            if name not in seen:
                seen[name] = stages[name]
                todo += [made[dep["path"]] for dep in stages[name].get("deps", []) if dep["path"] in made]
        data = [dep["md5"] for dep in stages[stage]["deps"] if dep["path"] == "data/slices"]
        facts["dvc.subgraph_sha256"] = hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()
        facts["dvc.data/slices"] = data[0]
    except (OSError, KeyError, TypeError, IndexError, yaml.YAMLError):
        facts["dvc.subgraph_sha256"] = "none"  # the model was trained outside DVC
    return facts


def evaluation(subjects: Path, lock: Path = Path("dvc.lock")) -> str | None:
    """Hash the data, code and params that made ``subjects`` (a `subjects.csv`) of a model.

    The result is None if DVC did not make the file. Two models with the same hash were measured in
    the same way, so their values can be compared.
    """
    import yaml

    try:
        stages = yaml.safe_load(lock.read_text())["stages"]
        entry = stages["evaluate"]
        [made] = [out["md5"] for out in entry["outs"] if out["path"] == subjects.as_posix()]
        of_model = {out["path"] for out in stages["train"]["outs"]}
        facts = [[dep for dep in entry["deps"] if dep["path"] not in of_model], entry["params"]]
        actual = hashlib.md5(subjects.read_bytes(), usedforsecurity=False).hexdigest()
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return None
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest() if actual == made else None


def add_version(folder: Path, metrics: dict[str, Any], files: list[Path]) -> tuple[str, bool]:
    """Register a translator folder with its lineage, metrics and ``files``.

    Return (version, is new).

    The same weights are the same version: registering them again changes nothing.
    """
    from medstyle.networks.folder import weights_sha256

    mlflow = connect()
    client = mlflow.MlflowClient()
    sha256 = weights_sha256(folder)
    if (known := _of_weights(sha256)) is not None:
        return str(known.version), False
    runs = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`medstyle.weights_sha256` = '{sha256}'",
        output_format="list",
        max_results=1,
    )
    from mlflow.models.model import ModelInfo

    from medstyle.registry.pyfunc import SIGNATURE

    main, origin = _main_table(metrics), lineage()
    flat = {f"{method}/{name}": row["mean"] for method, table in main.items() for name, row in table.items()}
    with mlflow.start_run(run_id=runs[0].info.run_id if runs else None, run_name=None if runs else "import"):
        mlflow.log_metrics({f"test/{key}": value for key, value in flat.items()})
        _explain(mlflow, main, (folder / CARD).read_text(), origin.get("dvc.data/slices"))
        for file in files:
            mlflow.log_artifact(str(file), "report")
        package = Path(__file__).parents[1]
        info: ModelInfo = mlflow.pyfunc.log_model(
            name="translator",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"translator": str(folder)},
            code_paths=[str(package)],
            pip_requirements=_requirements(),
            signature=SIGNATURE,
            input_example=example(),
            registered_model_name=NAME,
        )
    number = str(info.registered_model_version)
    tags = {"weights_sha256": sha256, **origin}
    tags |= {f"test.{key}": f"{value:.4f}" for key, value in flat.items() if key.startswith("model/")}
    for key, value in tags.items():
        client.set_model_version_tag(NAME, number, key, value)
    client.update_model_version(NAME, number, description=(folder / CARD).read_text())
    return number, True


def _explain(mlflow: Any, table: dict[str, Any], card: str, data: str | None) -> None:
    """Describe the run by the table of results and the model card, and log its training data."""
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource

    names = list(dict.fromkeys(name for row in table.values() for name in row))
    rows = [
        [method, *(f"{row[name]['mean']:.4g}" if name in row else "" for name in names)]
        for method, row in table.items()
    ]
    mlflow.set_tag("mlflow.note.content", f"{markdown(['method', *names], rows)}\n\n{card}")
    if data is not None:
        source = LocalArtifactDatasetSource("data/slices")
        mlflow.log_input(MetaDataset(source, name="slices", digest=data[:36]), context="training")


def _of_weights(sha256: str) -> Any:
    client = connect().MlflowClient()
    found = client.search_model_versions(f"name='{NAME}'")
    return next((version for version in found if version.tags.get("weights_sha256") == sha256), None)


def describe(sha256: str) -> str:
    """Return, as Markdown, the version of these weights, its verdict, and a link to its run."""
    mlflow = connect()
    version = _of_weights(sha256)
    if version is None:
        return "not registered"
    verdict = f"version {version.version}, gate {version.tags.get('gate', 'not asked')}"
    if (reasons := version.tags.get("gate.reasons", "none")) != "none":
        verdict += f" ({reasons})"
    uri = re.sub("//[^/]*@", "//", mlflow.get_tracking_uri())  # the address may contain a password
    if not uri.startswith("http"):
        return f"{verdict} · MLflow run {version.run_id}"
    experiment = mlflow.get_run(version.run_id).info.experiment_id
    return f"{verdict} · [MLflow run]({uri}/#/experiments/{experiment}/runs/{version.run_id})"


def _main_table(metrics: dict[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = metrics["tables"][metrics["reference"]]
    return table


def example() -> Any:
    """Return the table of a request with a synthetic head of 96 x 96 voxels as NPY bytes.

    A real image must not be stored with the model.
    """
    import io

    import numpy as np
    import pandas as pd

    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    head = sum(
        value * ((x / a) ** 2 + (y / b) ** 2 < 1)
        for value, a, b in ((300, 0.7, 0.85), (500, 0.6, 0.75), (-400, 0.15, 0.3))
    )
    file = io.BytesIO()
    np.save(file, np.asarray(head, np.float32))
    return pd.DataFrame({"image": [file.getvalue()]})


def _requirements() -> list[str]:
    """Pin the imports of the served model to the installed versions."""
    from importlib.metadata import version

    names = ("mlflow", "torch", "monai", "numpy", "scipy", "scikit-image", "PyWavelets", "SimpleITK", "pydicom",
             "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "safetensors",
             "pillow", "imagecodecs", "tifffile", "pydantic", "pyyaml", "rich")  # fmt: skip
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def rival(version: str) -> str | None:
    """Return the champion's version, if there is one and it is not ``version``."""
    champion = _by_alias("champion")
    return None if champion is None or str(champion.version) == version else str(champion.version)


def version_tags(version: str) -> dict[str, str]:
    """Return the tags of a version."""
    return dict(connect().MlflowClient().get_model_version(NAME, version).tags)


def remember_subjects(version: str, evaluated: str, subjects: Mapping[str, Mapping[str, float]]) -> None:
    """Store, with a version's run, the values of each subject from the evaluation ``evaluated``."""
    client = connect().MlflowClient()
    run_id = client.get_model_version(NAME, version).run_id
    client.log_dict(run_id, subjects, f"subjects/{evaluated}.json")


def known_subjects(version: str, evaluated: str) -> dict[str, dict[str, float]] | None:
    """Return the stored values of a version, None if ``evaluated`` never measured it."""
    mlflow = connect()
    from mlflow.exceptions import MlflowException

    run_id = mlflow.MlflowClient().get_model_version(NAME, version).run_id
    try:
        return dict(mlflow.artifacts.load_dict(f"runs:/{run_id}/subjects/{evaluated}.json"))
    except (MlflowException, OSError):
        return None


def conclude(version: str, reasons: list[str], documents: Mapping[str, str], judged_beside: str | None) -> str:
    """Record the verdict, set the alias ``candidate``, and promote a version that passed.

    Returns a sentence. The verdict and its reasons become tags of the version, ``documents`` (name
    -> text) become files of its run. A version only replaces the champion with which it was
    compared, and only once: after a rollback or a manual promotion, it needs another manual
    promotion.
    """
    client = connect().MlflowClient()
    client.set_registered_model_alias(NAME, "candidate", version)
    client.set_model_version_tag(NAME, version, "gate", "failed" if reasons else "passed")
    client.set_model_version_tag(NAME, version, "gate.reasons", "; ".join(reasons) or "none")
    found = client.get_model_version(NAME, version)
    for name, text in documents.items():
        client.log_text(found.run_id, text, name)
    if reasons:
        return f"{NAME} version {version}: gate failed: {'; '.join(reasons)}"
    with _alone(client):
        champion = rival(version)
        if champion != judged_beside:
            return f"{NAME} version {version} passed, but the champion changed meanwhile; run `medstyle register` again"
        if champion is not None and "promoted" in found.tags:
            return (
                f"{NAME} version {version} passed, but was champion before; `medstyle promote {version}` brings it back"
            )
        return _make_champion(client, version)


@contextmanager
def _alone(client: Any) -> Iterator[None]:
    """Hold the lock of the registry.

    The lock is a registered model, because any store, local or on a server, creates a name only
    once. A holder of more than ``LOCK_S`` seconds is taken as dead. Aliases that are changed
    outside this module are not protected by the lock.
    """
    from mlflow.exceptions import MlflowException

    held, since = None, time.monotonic()
    while True:
        try:
            client.create_registered_model(LOCK)
            break
        except MlflowException as error:  # the second code occurs if the lock is released while MLflow checks it
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise
        with suppress(MlflowException):  # the lock was released in the meantime
            now = client.get_registered_model(LOCK).creation_timestamp
            if now != held:
                held, since = now, time.monotonic()
            elif time.monotonic() - since > LOCK_S:
                client.delete_registered_model(LOCK)
        time.sleep(0.1)
    try:
        yield
    finally:
        client.delete_registered_model(LOCK)


def _by_alias(alias: str) -> Any:
    mlflow = connect()
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.MlflowClient().get_model_version_by_alias(NAME, alias)
    except MlflowException:
        return None


def promote(version: str, because: str | None = None) -> str:
    """Make ``version`` champion and the old champion ``previous``.

    A failed gate needs a recorded reason.
    """
    mlflow = connect()
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    try:
        chosen = client.get_model_version(NAME, version)
    except MlflowException:
        known = ", ".join(row["version"] for row in versions()) or "none"
        raise ModelError(f"{NAME} has no version {version}; registered: {known}") from None
    if chosen.tags.get("gate") != "passed":
        if not because:
            why = chosen.tags.get("gate.reasons", "it was never evaluated")
            raise ModelError(f"version {version} did not pass the gate ({why}); override with --because 'reason'")
        client.set_model_version_tag(NAME, version, "gate.overruled", because)
    with _alone(client):
        return _make_champion(client, version)


def _make_champion(client: Any, version: str) -> str:
    champion = _by_alias("champion")
    if champion is not None and str(champion.version) == version:
        return f"{NAME} version {version} is the champion"
    if champion is not None:
        client.set_registered_model_alias(NAME, "previous", str(champion.version))
    client.set_registered_model_alias(NAME, "champion", version)
    client.set_model_version_tag(NAME, version, "promoted", datetime.now(UTC).isoformat(timespec="seconds"))
    return f"{NAME} version {version} is the new champion" + (f", after {champion.version}" if champion else "")


def rollback() -> str:
    """Make ``previous`` champion again, and the champion ``previous``."""
    client = connect().MlflowClient()
    with _alone(client):
        champion, previous = _by_alias("champion"), _by_alias("previous")
        if champion is None or previous is None or champion.version == previous.version:
            raise ModelError("there is no previous champion to return to; see `medstyle models`")
        client.set_registered_model_alias(NAME, "champion", str(previous.version))
        client.set_registered_model_alias(NAME, "previous", str(champion.version))
    return f"{NAME} version {previous.version} is champion again, after {champion.version}"


def versions() -> list[dict[str, Any]]:
    """Describe every registered version, newest first."""
    mlflow = connect()
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    try:
        aliases = client.get_registered_model(NAME).aliases
    except MlflowException:
        return []
    rows = []
    for found in client.search_model_versions(f"name='{NAME}'"):
        number, tags = str(found.version), found.tags
        rows.append(
            {
                "version": number,
                "aliases": " ".join(sorted(a for a, v in aliases.items() if str(v) == number)),
                "gate": tags.get("gate", "-"),
                **{name: tags.get(f"test.model/{name}", "-") for name in ("psnr", "ssim", "mae")},
                "weights": tags.get("weights_sha256", "")[:12],
                "git": tags.get("git.sha", "")[:8] + ("*" if tags.get("git.dirty") == "true" else ""),
            }
        )
    return sorted(rows, key=lambda row: -int(row["version"]))


def described(version: str) -> dict[str, Any]:
    """Return what is known of a version: table of results, verdict with reasons, origin.

    The table has one row for each method, the model and its baselines; the rates are those of
    :func:`safety_rates`.
    """
    mlflow = connect()
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    try:
        found = client.get_model_version(NAME, version)
        metrics = client.get_run(found.run_id).data.metrics
    except MlflowException:
        raise _unknown(f"models:/{NAME}/{version}") from None
    table: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        part, _, rest = key.partition("/")
        method, _, name = rest.partition("/")
        if part == "test" and name:
            table.setdefault(method, {})[name] = value
    reasons = found.tags.get("gate.reasons", "none")
    try:
        rates = safety_rates(mlflow.artifacts.load_dict(f"runs:/{found.run_id}/report/metrics.json"))
    except (MlflowException, OSError):
        rates = {}  # registered without its report
    return {
        "table": table,
        "rates": rates,
        "gate": found.tags.get("gate", "not asked"),
        "reasons": [] if reasons == "none" else reasons.split("; "),
        "overruled": found.tags.get("gate.overruled", ""),
        "promoted": found.tags.get("promoted", ""),
        "git": found.tags.get("git.sha", ""),
        "weights_sha256": found.tags.get("weights_sha256", ""),
    }


def safety_rates(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the rates of lesions and created structures in ``metrics.json``, as far as measured.

    ``lesions kept`` is the share of lesions that kept half of their contrast, ``created`` the mean
    number of structures per subject that are absent from the truth.
    """
    rates: dict[str, float] = {}
    if "survived" in (lesions := metrics.get("lesions", {})):
        rates |= {"lesions kept": lesions["survived"], "lesions": lesions["count"]}
    if "created" in (safety := metrics.get("safety", {})):
        rates["created"] = safety["created"]["mean"]
    return rates


def fetch(reference: str) -> Path:
    """Return the local translator folder of ``models:/...``.

    Raise :class:`UserError` if it is unknown.
    """
    # MLflow keeps the name of the folder that was registered
    return next(iter(sorted((download(reference) / "artifacts").iterdir())))


def download(reference: str, out: Path | None = None) -> Path:
    """Return the folder of the model ``models:/...``, or a copy of it in the new folder ``out``."""
    mlflow = connect()
    from mlflow.exceptions import MlflowException

    try:
        return Path(mlflow.artifacts.download_artifacts(reference.rstrip("/"), dst_path=out and str(out)))
    except (MlflowException, OSError):
        raise _unknown(reference) from None


def _unknown(reference: str) -> UserError:
    return UserError(f"{reference}: no such registered model; see `medstyle models`, or train with `dvc repro`")


class Served(NamedTuple):
    """A version that is or will be served."""

    model: str
    version: str
    weights_sha256: str
    aliases: list[str]


def resolve(reference: str) -> Served:
    """Return the current meaning of ``models:/name@alias`` or ``models:/name/version``.

    Raises :class:`UserError`.
    """
    client = connect().MlflowClient()
    from mlflow.exceptions import MlflowException

    name, by_alias, alias = reference.removeprefix("models:/").partition("@")
    try:
        if by_alias:
            found = client.get_model_version_by_alias(name, alias)
        else:
            found = client.get_model_version(*name.rstrip("/").split("/"))
    except (MlflowException, TypeError):
        raise _unknown(reference) from None
    return Served(found.name, str(found.version), found.tags.get("weights_sha256", ""), list(found.aliases))


def model_folder(reference: str) -> Path:
    """Return the translator folder of a reference: folder, ``models:/...``, or version number."""
    if reference.isdigit() and not Path(reference).exists():
        reference = f"models:/{NAME}/{reference}"
    return fetch(reference) if reference.startswith("models:/") else Path(reference)
