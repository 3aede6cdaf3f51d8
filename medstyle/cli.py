"""Define the command line ``medstyle``, a thin layer that calls functions of the package.

Heavy imports are inside the commands.
"""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medstyle.errors import USABLE, DataError, MissingPackage, OutputError, ParamsError, UserError, outline
from medstyle.jobs.startup import import_less

# before a runtime is loaded: idle threads sleep instead of spinning, so that other jobs can use the
# cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

app = typer.Typer(
    help="From a folder of scans or pictures to a trained, measured, registered and served style-transfer model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ParamsFile = Annotated[Path, typer.Option("--params", help="File that contains the section of the stage.")]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
Model = Annotated[
    str, typer.Option("--model", help="Translator folder, anybrain, or a model such as models:/medstyle@champion.")
]
REFUSED = 3  # exit code of `inspect`
DEFAULT_MODEL = "models:/medstyle@champion"


def main() -> None:
    """Run the command line; bad input ends in one clear line and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may consist of bytes that are not text
    import_less()
    try:
        app()
    except UserError as error:
        print(f"medstyle: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            print(outline(error), end="", file=sys.stderr)
            sys.exit(1)
        print("medstyle: the disk is full; free disk space and run the same command again", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("medstyle: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        print(outline(error), end="", file=sys.stderr)
        sys.exit(1)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)  # a pipe has no width


def _stage(name: str, file: Path) -> tuple[Any, Any]:
    from medstyle.params import load

    module = importlib.import_module(f"medstyle.stages.{name}")
    return module.run, load(module.Params, name, file)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="New folder for studies/ and truth/.")],
    subjects: Annotated[int, typer.Option(help="Number of studies.")] = 24,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    domains: Annotated[str, typer.Option(help="Contrasts, separated by commas.")] = "mr_t1,mr_t2",
) -> None:
    """Write DICOM studies of the digital brain phantom.

    Example: medstyle phantom /tmp/studies --subjects 2 --domains mr_t1,mr_t2,ct
    """
    from medstyle.params import parse
    from medstyle.stages.acquire import Params, run

    if out.exists():
        raise OutputError(f"{out}: exists already; name a new folder")
    run(parse(Params, {"subjects": subjects, "seed": seed, "domains": domains.split(",")}, "phantom"), out, print)


@app.command()
def inspect(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders.")],
    json_: Json = False,
    pictures: Annotated[
        Path | None, typer.Option(help="New HTML page with thumbnails, by domain, of one folder.")
    ] = None,
    looks: Annotated[
        bool, typer.Option("--looks", help="Read the voxels, say what each head looks like, warn of contradictions.")
    ] = False,
) -> None:
    """Show which files would be used or refused, and why. Writes nothing.

    Exit code 0: nothing was refused; 3: something was refused; 2: bad arguments. With --json,
    voxels are read as well, so more files may be refused.

    Example: medstyle inspect data/raw --looks
    """
    from medstyle.cohort.inventory import inventory

    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
    found = inventory(paths)
    if pictures is not None:
        _write_pictures(paths, pictures)
    document = found.to_json(_domain_by_params(), values=json_)
    if looks:
        _look_over(found.volumes, document["volumes"])
    judged = [file["verdict"] != "refused" for file in document["files"]]
    judged += [row["code"] in USABLE for row in document["volumes"]]
    if json_:
        print(json.dumps(document, indent=1))
        raise typer.Exit(0 if all(judged) else REFUSED)
    from rich.table import Table

    seen = ("looks like",) if looks else ()
    table = Table("series", "domain", "kind", "shape", "spacing mm", "files", "verdict", *seen)
    for row in document["volumes"]:
        spacing = " ".join(f"{value:.2f}" for value in row["spacing_mm"] or [])
        verdict = ": ".join(filter(None, (row["code"] or "used", row["reason"])))
        shape = " x ".join(map(str, row["shape"]))
        cells = [row["series"], row["domain"] or "-", row["kind"], shape, spacing, str(len(row["files"])), verdict]
        table.add_row(*cells, *(row["look"]["text"] for _ in seen))
    console = _console()
    console.print(table)
    for row in document["volumes"] if looks else ():
        if row["look"]["doubt"]:
            console.print(f"warning: {row['series']}: {row['look']['doubt']}", markup=False)
    unused = [file for file in document["files"] if file["verdict"] != "used"]
    for file in unused:
        console.print(f"{file['verdict']}: {file['path']}: {file['code']}: {file['reason']}", markup=False)
    console.print(f"{len(document['files']) - len(unused)} files used, {len(unused)} not")
    raise typer.Exit(0 if all(judged) else REFUSED)


def _look_over(items: Iterable[Any], rows: list[dict[str, Any]]) -> None:
    """Add to each row what its scan looks like, and what contradicts that."""
    from dataclasses import asdict

    from medstyle.project.contrast import look_over

    for item, row in zip(items, rows, strict=True):
        seen = look_over(item, row["domain"])
        row["look"] = {**asdict(seen.look), "text": seen.text, "doubt": seen.doubt}


def _write_pictures(paths: list[Path], page: Path) -> None:
    from medstyle.project.survey import survey
    from medstyle.project.thumbnails import write_thumbnails

    if len(paths) != 1 or page.exists():
        raise ParamsError(f"--pictures {page}: " + ("exists already" if page.exists() else "shows one folder"))
    write_thumbnails(survey(paths[0]), page)


def _domain_by_params() -> Any:
    """Return a function that assigns domains by the rules of ./params.yaml, if the file exists."""
    if not Path("params.yaml").is_file():
        return None
    from medstyle.cohort.rules import domain_of
    from medstyle.data.canonical import attributes_of, labels_of
    from medstyle.params import load
    from medstyle.stages.ingest import Params

    params = load(Params, "ingest")
    source, labels = Path(params.source), labels_of(params)
    return lambda item: domain_of(attributes_of(item, source, labels, params.rules), params.rules)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New folder of the project.")],
    data: Annotated[Path, typer.Option(help="Folder of DICOM studies, volume files or pictures.")],
    from_: Annotated[str | None, typer.Option("--from", help="Source domain; default: proposed.")] = None,
    to: Annotated[str | None, typer.Option(help="Target domain; default: proposed.")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="Duration of the training on this machine.")] = 60.0,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
) -> None:
    """Look at data, propose what to train on them, and write a project; nothing is trained.

    Every value in the project's params.yaml has its reason beside it.

    Example: medstyle init t1-to-t2 --data /archive/study --minutes 120
    """
    from medstyle.project.propose import Wishes, propose
    from medstyle.project.survey import survey
    from medstyle.project.thumbnails import table, write_thumbnails
    from medstyle.project.write import check_new, render, write_project

    check_new(folder)
    found = survey(data)
    _print_table(table(found))
    for why, count in [*found.left_out().most_common(), *found.refused.most_common()]:
        print(f"{count} not used: {why}")
    proposal = propose(found, Wishes(from_, to, minutes))
    if not yes and sys.stdin.isatty():
        source, target = (
            typer.prompt(f"{role} domain", default=value)
            for role, value in (("source", proposal.source), ("target", proposal.target))
        )
        if (source, target) != (proposal.source, proposal.target):
            proposal = propose(found, Wishes(source, target, minutes))
    print(f"{proposal.source} -> {proposal.target}: {proposal.job.recipe}, because {proposal.job.why}")
    for note in proposal.notes:
        print(f"note: {note}")
    title = f"{proposal.source} to {proposal.target}"
    for said in write_project(folder, render(proposal, folder), title, proposal.labels):
        print(f"medstyle: warning: {said}", file=sys.stderr)
    write_thumbnails(found, folder / "reports" / "data.html")
    print(
        f"{folder / 'params.yaml'} says what will be done and why; {folder / 'reports' / 'data.html'} shows the images"
    )
    print(f"next: cd {folder} && dvc repro")


def _print_table(rows: list[list[str]], styles: dict[str, str] | None = None) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*map(escape, row), style=(styles or {}).get(row[1]))
    _console().print(table)


@app.command()
def status(json_: Json = False) -> None:
    """Show which stages of this project have run, which are stale, and the next command.

    Example: cd t1-to-t2 && medstyle status
    """
    from medstyle.project.status import status as look

    found = look()
    if json_:
        print(json.dumps({"stages": [stage._asdict() for stage in found.stages], "next": found.next}, indent=1))
        return
    _print_table([["stage", "state", "changed"], *([s.name, s.state, "; ".join(s.changed)] for s in found.stages)])
    print(f"next: {found.next}")


@app.command()
def doctor(json_: Json = False) -> None:
    """Check installation, GPU, disk, secret, git and servers; exit code 3 if something is wrong.

    Example: medstyle doctor
    """
    from medstyle.project.doctor import checks

    found = checks(Path())
    if json_:
        print(json.dumps([check._asdict() for check in found], indent=1))
    else:
        _print_table([["what", "state", "found", "remedy"], *map(list, found)], {"wrong": "red", "fine": "green"})
    raise typer.Exit(REFUSED if any(check.state == "wrong" for check in found) else 0)


@app.command(name="params")
def params_(
    key: Annotated[str, typer.Argument(help="A key such as train.training.steps; default: all.")] = "",
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of params.yaml for editors.")] = False,
) -> None:
    """Print the keys of params.yaml with type, default and meaning.

    Example: medstyle params train.training
    """
    from medstyle.project.reference import entries
    from medstyle.project.reference import schema as whole

    if schema:
        print(json.dumps(whole(), indent=1))
        return
    for entry in entries(key):
        print(f"{entry.path}: {entry.kind}" + (f", default {entry.default}" if entry.default else ""))
        if entry.meaning:
            print(f"    {entry.meaning}")


@app.command()
def version() -> None:
    """Print the installed version, and a hash of its code, which changes when it is edited."""
    from medstyle.project.write import program

    print(program())


@app.command()
def deidentify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="DICOM file, or folder in any arrangement.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder; names below it are keyed hashes.")],
    dates: Annotated[
        Literal["remove", "shift"], typer.Option(help="Shift: by a number of days that differs for each patient.")
    ] = "remove",
    keep_patient: Annotated[bool, typer.Option("--keep-patient", help="Keep sex, age, size and weight.")] = False,
    keep_device: Annotated[bool, typer.Option("--keep-device", help="Keep manufacturer, model and software.")] = False,
    keep_private: Annotated[
        list[str] | None, typer.Option(help="GROUP,ELEMENT,CREATOR of a private element known to be safe; repeatable.")
    ] = None,
    json_: Json = False,
) -> None:
    """Write de-identified copies of DICOM images; exit code 2 if one is refused.

    Needs MEDSTYLE_SECRET.

    Example: medstyle deidentify data/mine data/research --keep-private "2005,xx0E,Philips MR
    Imaging DD 001"
    """
    from medstyle.dicom.deidentify import Options, deidentify_folder, private_element

    private = tuple(map(private_element, keep_private or []))
    verdicts = deidentify_folder(source, out, Options(dates == "shift", keep_patient, keep_device, private))
    if json_:
        rows = [{"path": str(v.path), "verdict": v.verdict, "code": v.code, "reason": v.reason} for v in verdicts]
        print(json.dumps(rows, indent=1))
    else:
        for verdict in verdicts:
            if verdict.verdict != "used":
                print(f"{verdict.verdict}: {verdict.path}: {verdict.code}: {verdict.reason}")
    count = {name: sum(v.verdict == name for v in verdicts) for name in ("used", "skipped", "refused")}
    said = f"{count['used']} files written to {out}, {count['skipped']} skipped, {count['refused']} refused"
    if count["refused"] or not verdicts:
        raise ParamsError(said)
    if not json_:
        print(said)


@app.command()
def acquire(file: ParamsFile = Path("params.yaml")) -> None:
    """Stage: create the raw data (by default, the phantom) in data/raw."""
    run, params = _stage("acquire", file)
    run(params, Path("data/raw"), print)


@app.command()
def ingest(file: ParamsFile = Path("params.yaml")) -> None:
    """Stage: raw files -> de-identified images in data/scans, and reports/ingest.json."""
    run, params = _stage("ingest", file)
    run(params, Path("data/scans"), Path("reports/ingest.json"))


@app.command()
def denoise(file: ParamsFile = Path("params.yaml")) -> None:
    """Stage: data/scans -> the slice store data/slices."""
    run, params = _stage("denoise", file)
    run(params, Path("data/scans"), Path("data/slices"))


@app.command()
def train(file: ParamsFile = Path("params.yaml")) -> None:
    """Stage: data/slices -> models/translator.

    After a crash, run it again: it resumes where it stopped.
    """
    from medstyle.registry.tracking import training_run

    run, params = _stage("train", file)
    processes = params.training.processes
    if processes > 1 and "RANK" not in os.environ:  # start them: each returns here with its own rank
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        done = subprocess.run([*launcher, "-m", "medstyle.cli", "train", "--params", str(file)], check=False)
        raise typer.Exit(done.returncode)
    slices, model, first = Path("data/slices"), Path("models/translator"), os.environ.get("RANK", "0") == "0"
    _check_protocol(file, params, slices)
    with training_run(params, model) if first else nullcontext(lambda step, values: None) as log:
        run(params, slices, model, Path("reports/training.csv"), log=log, fetch=_folder)


def _check_protocol(file: Path, plan: Any, slices: Path) -> None:
    """Raise UserError before the training if `evaluate` could not measure its result."""
    from medstyle.data.store import SliceStore
    from medstyle.evaluation.measured import EvaluateParams, subjects_to_measure, targets_of
    from medstyle.params import load

    protocol = load(EvaluateParams, "evaluate", file).protocol
    targets = targets_of(plan.source, plan.target, plan.learned)
    subjects_to_measure(SliceStore.open(slices), protocol, plan.source, targets, plan.contrasts)


@app.command()
def evaluate(
    file: ParamsFile = Path("params.yaml"),
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Two versions, models or folders: measure both on the same subjects; writes nothing."),
    ] = None,
    json_: Json = False,
) -> None:
    """Stage: measure the translator and its baselines on unseen subjects; writes reports/.

    Example: medstyle evaluate --compare 3 models/translator
    """
    run, params = _stage("evaluate", file)
    if compare is None:
        from medstyle.registry.models import lineage

        run(params, *_inputs(file, Path("models/translator")), Path("reports"), lineage=lineage())
        return
    from medstyle.evaluation.summary import compare_models
    from medstyle.registry.models import model_folder

    first, second = (_measure(file, model_folder(name)) for name in compare)
    result = compare_models(first, second, params.protocol)
    if json_:
        print(json.dumps(result, indent=1))
        return
    from rich.table import Table

    title = f"{len(first)} subjects, protocol {params.protocol}"
    table = Table("measure", *compare, "second - first", "95 % interval", "p", title=title, title_justify="left")
    for name, of in result.items():
        p = "" if of["p"] is None else f"{of['p']:.3f}"
        numbers = (f"{of[key]:.4f}" for key in ("first", "second", "difference"))
        table.add_row(name, *numbers, f"{of['low']:.4f} to {of['high']:.4f}", p)
    _console().print(table)


@app.command()
def crossvalidate(
    folds: Annotated[int, typer.Option(help="Parts of the subjects; each is tested once.")] = 5,
    file: ParamsFile = Path("params.yaml"),
) -> None:
    """Measure every subject once, each by a model that did not see it; for few subjects.

    It needs data/scans (`dvc repro ingest`) and trains as often as there are folds. Finished folds
    are kept in .medstyle/folds. Values of every subject: reports/folds.csv.

    Example: medstyle crossvalidate --folds 5
    """
    from medstyle.project.folds import cross_validate

    truth, out = _inputs(file, Path())[3], Path("reports/folds.csv")
    out.parent.mkdir(exist_ok=True)
    comparison, metrics = cross_validate(file, folds, truth, out, _folder)
    head = ["measure", "method", "mean", "gain of the model", "95 % interval", "better on"]
    rows = []
    for name, methods in comparison.items():
        for method, row in methods.items():
            gain = (
                ["", "", ""]
                if method == "model"
                else [
                    f"{row['gain']:+.4f}",
                    f"{row['low']:+.4f} to {row['high']:+.4f}",
                    f"{row['better']} subjects",
                ]
            )
            rows.append([name, method, f"{row['mean']:.4f}", *gain])
    print(f"{folds} folds, protocol {metrics['protocol']}")
    _print_table([head, *rows])
    print(f"values of every subject: {out}")


def _inputs(file: Path, model: Path) -> tuple[Path, Path, Path, Path]:
    """Return the inputs of `evaluate`: scans, slices, the translator folder and the truth."""
    from medstyle.params import load
    from medstyle.stages.ingest import Params

    return Path("data/scans"), Path("data/slices"), model, Path(load(Params, "ingest", file).source) / "truth"


def _measure(file: Path, model: Path) -> dict[str, dict[str, float]]:
    """Measure a translator folder on the unseen subjects; return values by subject and measure."""
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from medstyle.evaluation.gate import read_methods

    run, params = _stage("evaluate", file)
    with TemporaryDirectory(prefix="medstyle-") as out:
        fast = replace(params, figures=0, uncertainty=0, intervals=0, segmenter=0)
        run(fast, *_inputs(file, model), Path(out), lambda _: None)
        return read_methods(Path(out) / "subjects.csv")["model"]


@app.command()
def register(file: ParamsFile = Path("params.yaml")) -> None:
    """Stage: register the translator in MLflow as candidate; the gate may make it champion."""
    run, params = _stage("register", file)
    run(params, Path("models/translator"), Path("reports"), file, lambda model: _measure(file, model))


@app.command()
def translate(
    source: Annotated[Path, typer.Argument(metavar="IN", help="DICOM folder or file, volume file, picture or video.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder (DICOM), or file of the same kind.")],
    model: Model = DEFAULT_MODEL,
    to: Annotated[str | None, typer.Option(help="Target domain; default: the one the model was trained for.")] = None,
    from_: Annotated[str | None, typer.Option("--from", help="Domain of the input, if no rule determines it.")] = None,
    style: Annotated[
        list[Path] | None, typer.Option(help="Image of the target domain for the style; repeat it for a mixture.")
    ] = None,
    weight: Annotated[list[float] | None, typer.Option(help="Weight of each --style; default: equal.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of a random style.")] = None,
    uncertainty: Annotated[bool, typer.Option(help="Also write a map of the output's standard deviation.")] = False,
    sharpness: Annotated[
        float | None,
        typer.Option(help="Models with a refiner: share of fine detail, from 0 (least error) to 1."),
    ] = None,
    strength: Annotated[float, typer.Option(help="Pictures: 0 leaves them unchanged, 1 applies the full style.")] = 1.0,
    keep_colour: Annotated[
        bool, typer.Option(help="Pictures: keep their colours; take the style's lightness.")
    ] = False,
    size: Annotated[
        int | None, typer.Option(help="Pictures: shorter side at which they are rendered; smaller is a broader brush.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Pictures: a mask, white where the style applies, black where nothing changes.")
    ] = None,
    temporal_smoothing: Annotated[
        float, typer.Option(help="Videos: share of the previous frame in regions that match; 0: independent frames.")
    ] = 0.8,
    sharpen: Annotated[float, typer.Option(help="Pictures: sharpening, from 0 (none) to 1 (strong).")] = 0.0,
    upscale: Annotated[int, typer.Option(help="Pictures: enlarge 2 to 4 times, without new detail.")] = 1,
    method: Annotated[
        str | None,
        typer.Option(help="Classical method to use with --style instead of a model: histogram_matching, ..."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Translate even what does not resemble the training images.")] = False,
    allow: Annotated[
        list[str] | None, typer.Option(help="Code to override after inspection of the images, such as E_BURNED_IN.")
    ] = None,
    json_: Json = False,
) -> None:
    """Translate a scan, picture or video to a file of the same kind (DICOM, NIfTI, ...).

    Example: medstyle translate data/raw/studies/PHANTOM-0000 synthetic --model models/translator
    """
    from medstyle.inference.files import Request, read_mask, translate_path
    from medstyle.inference.render_options import RenderOptions

    mixture = _mixture(style or [], weight)
    options = RenderOptions(
        strength, keep_colour, sharpen, upscale, size, read_mask(mask) if mask else None, temporal_smoothing
    )
    if method is not None:
        _classical(source, out, style or [], method, options)
        return
    request = Request(to, from_, mixture, seed, uncertainty, options, force, tuple(allow or ()))
    results = translate_path(source, out, _translator(model).sharpened(sharpness), request)
    _print_translations(results, json_)


def _mixture(styles: list[Path], weights: list[float] | None) -> list[tuple[float, Path]]:
    weights = weights or [1.0] * len(styles)
    if len(weights) != len(styles):
        raise ParamsError(f"--weight: {len(weights)} for {len(styles)} --style; give one for each")
    return list(zip(weights, styles, strict=True))


def _print_translations(results: list[dict[str, Any]], json_: bool) -> None:
    if json_:
        print(json.dumps(results, indent=1))
        return
    for result in results:
        print(
            f"{result['out']}: {result['domain']}, {result['shape']}, out-of-distribution {result['ood_verdict']} "
            f"(score {result['ood_score']:.2f})"
        )
        for warning in result["warnings"]:
            print(f"medstyle: warning: {warning}", file=sys.stderr)


def _classical(source: Path, out: Path, style: list[Path], method: str, options: Any) -> None:
    from medstyle.evaluation.baselines import PICTURE_METHODS, style_picture
    from medstyle.imaging.formats import FORMATS
    from medstyle.imaging.picture import SYNTHETIC_NOTE, read_picture, write_picture

    if method not in PICTURE_METHODS:
        raise ParamsError(f"--method {method}: none of {', '.join(PICTURE_METHODS)}")
    if len(style) != 1:
        raise ParamsError(f"--method {method}: name the picture whose style is taken with --style")
    if out.exists() or out.suffix.lower() not in FORMATS["picture"].writes:
        why = "exists already; remove it or" if out.exists() else "is no picture's name;"
        raise ParamsError(f"{out}: {why} choose another name")
    pixels = read_picture(source, alpha=True)
    made = options.apply(pixels, style_picture(pixels, style[0], method))
    write_picture(out, made, SYNTHETIC_NOTE)
    print(f"{out}: {method}, {list(made.shape[:2])}")


@app.command()
def ensemble(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New translator folder.")],
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Translators that differ in their seed.")],
) -> None:
    """Combine translators into one whose output is the mean of their outputs.

    Example: medstyle ensemble models/ensemble models/seed-0 models/seed-1 models/seed-2
    """
    from medstyle.networks.translator import ensemble as combine

    if out.exists():
        raise OutputError(f"{out}: exists already; name a new folder")
    combined = combine(folders, out)
    print(f"{out}: {len(combined.members)} members, weights sha256 {combined.sha256[:16]}")


def _folder(reference: str) -> Path:
    """Return the folder of a model: a folder, one that is installed, or `models:/...`."""
    from medstyle.catalogue.store import installed_folder
    from medstyle.networks.folder import ready_folder

    if not reference.startswith("models:/"):  # a folder does not need the registry's imports
        return installed_folder(reference) or ready_folder(reference)
    from medstyle.registry.models import fetch

    return fetch(reference)


def _translator(reference: str) -> Any:
    from medstyle.networks.translator import Translator

    return Translator.load(_folder(reference))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Translator folder, or a model such as models:/medstyle@champion.")],
    out: Annotated[Path, typer.Argument(help="New file: .onnx, .pt2 or .ts (TorchScript); with --bundle a folder.")],
    to: Annotated[str | None, typer.Option(help="Target domain; default: the one the model was trained for.")] = None,
    style: Annotated[Path | None, typer.Option(help="Image whose style the file is to give.")] = None,
    bundle: Annotated[bool, typer.Option("--bundle", help="Write a MONAI bundle, with preparation.")] = False,
) -> None:
    """Write a model for other runtimes: network units in and out, for any batch and image size.

    A bundle takes and makes whole scans.

    Example: medstyle export models/translator model.onnx
    """
    from medstyle.inference.files import read_reference
    from medstyle.inference.translate import style_of
    from medstyle.networks.export import export as write

    if out.exists():
        raise OutputError(f"{out}: exists already; remove it or choose another name")
    translator = _translator(model)
    if bundle:
        if style:
            raise ParamsError("export: --style is for one file; a bundle renders in the default style")
        from medstyle.inference.bundle import write_bundle

        write_bundle(translator, out, to)
        print(f"{out}: python -m monai.bundle run --config_file {out}/configs/inference.json --bundle_root {out}")
        return
    codes = style_of(translator, to, read_reference(style, translator, to)) if style else None
    write(translator, out, to, codes)
    print(f"{out}: sizes must be multiples of {translator.multiple}")


@app.command()
def publish(
    model: Annotated[str, typer.Argument(help="Registered version, models:/..., or translator folder.")],
    out: Annotated[Path, typer.Argument(help="Folder of published packages and their index.")] = Path("published"),
    licence: Annotated[str, typer.Option(help="SPDX identifier of the licence of the weights.")] = "",
    name: Annotated[str, typer.Option(help="Name of the model in catalogues.")] = "medstyle",
    key: Annotated[Path, typer.Option(help="Private key of ed25519 (PEM); made if missing.")] = Path(
        "~/.config/medstyle/publisher.pem"
    ),
) -> None:
    """Make a signed file of a model that others install, and enter it into an index.

    Example: medstyle publish 3 published --licence CC-BY-4.0 --name t1-to-t2
    """
    from medstyle.registry.publish import publish as make

    path, manifest, signer = make(model, out, key.expanduser(), licence, name)
    print(f"{path}: {manifest.key}, {len(manifest.files)} files, signed by {signer}")


@app.command()
def install(
    where: Annotated[Path, typer.Argument(metavar="FILE|FOLDER|INDEX", help="Package, or index of packages.")],
    name: Annotated[str | None, typer.Argument(help="Which package of an index: NAME or NAME@VERSION.")] = None,
    trust: Annotated[str | None, typer.Option(help="Fingerprint of a publisher to trust from now on.")] = None,
) -> None:
    """Check a signed package of a model, and install it for this user; needs no network.

    Example: medstyle install published/index.json t1-to-t2 --trust 1f3a...
    """
    from medstyle.catalogue.store import install as put

    manifest, new = put(where, name, trust)
    print(f"{manifest.key}: {'installed' if new else 'is installed already'}; use it with --model {manifest.key}")


def _print_available(index: Path | None, json_: bool) -> None:
    from medstyle.catalogue.store import described, installed, read_index

    rows = [{**described(one), "place": "installed"} for one in installed()]
    if index is not None:
        rows += [{**row, "place": str(row.pop("file"))} for row in read_index(index)]
    if json_:
        print(json.dumps(rows, indent=1))
        return
    names = ("name", "version", "task", "inputs", "licence", "gate", "figures", "place")
    shown = [{**row, "figures": _figures(row["figures"]), "inputs": " ".join(row["inputs"])} for row in rows]
    _print_table([list(names), *([str(row[name]) for name in names] for row in shown)])


def _figures(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in figures.items() if name in ("psnr", "ssim", "mae"))


@app.command()
def models(
    json_: Json = False,
    available: Annotated[bool, typer.Option("--available", help="List installed models instead.")] = False,
    index: Annotated[Path | None, typer.Option(help="With --available: also list the packages of an index.")] = None,
) -> None:
    """List the registered versions with their aliases, verdicts and metrics."""
    if available or index is not None:
        _print_available(index, json_)
        return
    from medstyle.registry.models import versions

    rows = versions()
    if json_:
        print(json.dumps(rows, indent=1))
        return
    from rich.table import Table

    table = Table("version", "aliases", "gate", "PSNR", "SSIM", "MAE", "weights", "git")
    for row in rows:
        table.add_row(
            *(str(row[key]) for key in ("version", "aliases", "gate", "psnr", "ssim", "mae", "weights", "git"))
        )
    _console().print(table)


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="Version to make champion.")],
    because: Annotated[str | None, typer.Option(help="Reason to override a failed gate; it is recorded.")] = None,
) -> None:
    """Make VERSION the champion; the old champion becomes `previous`.

    Example: medstyle promote 3
    """
    from medstyle.registry.models import promote as make_champion

    print(make_champion(version, because))


@app.command()
def rollback() -> None:
    """Make `previous` the champion again."""
    from medstyle.registry.models import rollback as back

    print(back())


@app.command()
def summary() -> None:
    """Show the results of the last run and the next steps."""
    from medstyle.registry.models import versions

    path = Path("reports/metrics.json")
    if not path.is_file():
        raise ParamsError(f"{path}: missing; run `dvc repro` first")
    metrics = json.loads(path.read_text())
    from rich.table import Table

    console = _console()
    for reference, rows in metrics["tables"].items():
        title = (
            f"{metrics['subjects']} unseen subjects against {reference} (protocol {metrics['protocol']}), mean and SD"
        )
        table = Table("method", *metrics["headline"], title=title, title_justify="left")
        for method, row in rows.items():
            table.add_row(
                method,
                *(f"{row[name]['mean']:.3f} ± {row[name]['sd']:.3f}" for name in metrics["headline"]),
                style="bold" if method == "model" else "",
            )
        console.print(table)
    if lesions := metrics["lesions"]:
        console.print(
            f"lesions: {lesions['survived']:.0%} of {lesions['count']:.0f} keep at least half of their contrast"
        )
    newest = next((v for v in versions() if metrics["weights_sha256"].startswith(v["weights"])), None)
    if newest:
        console.print(f"registered: medstyle version {newest['version']} ({newest['aliases']}; gate {newest['gate']})")
    console.print(
        f"""report: {Path("reports/report.html").resolve()}

Next (after `source .venv/bin/activate`):
  medstyle translate data/raw/studies/PHANTOM-0000 synthetic   your own DICOM folder, NIfTI file or picture works alike
  make serve                                                   then see docs/how-to/serve.md for a request
  mlflow server --backend-store-uri sqlite:///mlflow.db --port 5200      training curves, pictures, models
  python -m flows.train                                        the same as a Prefect flow: docs/how-to/schedule.md""",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="Registered model to serve.")] = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5101,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes, each for one request at a time.")] = 1,
    body_mb: Annotated[int, typer.Option(help="Largest request in MiB.")] = 256,
    capacity: Annotated[int, typer.Option(help="Largest number of waiting and running requests.")] = 16,
    timeout: Annotated[
        float, typer.Option(help="Time limit in seconds to translate; also to wait for a worker.")
    ] = 300.0,
    rows: Annotated[int, typer.Option(help="Largest number of images in a request.")] = 1000,
    poll: Annotated[float, typer.Option(help="Interval in seconds between checks of the alias.")] = 5.0,
    audit: Annotated[Path | None, typer.Option(help="File to which a line of hashes is appended per request.")] = None,
) -> None:
    """Serve a registered model over HTTP, and follow its alias without downtime.

    Example: medstyle serve --port 5101 --audit audit.jsonl
    """
    from medstyle.registry.server import RequestLimits
    from medstyle.registry.server import serve as start

    start(model, host, port, workers, RequestLimits(body_mb << 20, capacity, timeout, rows), poll, audit)


@app.command()
def listen(
    folder: Annotated[Path, typer.Argument(help="Folder of the inbox, its ledger and its results.")] = Path(
        "data/station"
    ),
    file: ParamsFile = Path("params.yaml"),
    model: Model = DEFAULT_MODEL,
    audit: Annotated[Path | None, typer.Option(help="File to which a line is appended per event.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Let refused deliveries be tried again, and end.")] = False,
) -> None:
    """Take studies by DICOM and DICOMweb, translate each once, and send the results to archives.

    Settings are the section `door` of the params file.

    Example: medstyle listen data/station --model models:/medstyle@champion --audit audit.jsonl
    """
    from medstyle.door.ledger import Ledger
    from medstyle.door.settings import Params
    from medstyle.params import load

    params = load(Params, "door", file)
    if retry:
        if not (folder / "ledger.db").is_file():
            raise DataError(f"{folder}: no door has written here; name its folder")
        with closing(Ledger(folder)) as ledger:
            print(f"{ledger.retry()} deliveries are tried again")
        return
    try:
        from medstyle.door.listen import listen as start
    except ImportError as error:
        raise MissingPackage(f'listen: needs {error.name}: pip install "medstyle[archive]"') from None

    start(folder, params, model, audit)


@app.command()
def studio(
    model: Model = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on; another than this machine's asks for a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any that is free.")] = 5102,
    upload_mb: Annotated[int, typer.Option(min=1, help="Largest size in MiB of what one browser drops.")] = 2048,
    idle_minutes: Annotated[float, typer.Option(help="What was dropped is deleted after so long without use.")] = 30.0,
) -> None:
    """Open the studio: drop images on a page, translate, compare, and decide about models.

    Example: medstyle studio --model models/translator
    """
    try:
        from medstyle.studio.server import studio as start
        from medstyle.studio.sessions import Limits
    except ImportError as error:
        raise MissingPackage(f'studio: needs {error.name}: pip install "medstyle[ops]"') from None

    start(model, host, port, Limits(upload_bytes=upload_mb << 20, idle_s=60 * idle_minutes))


if __name__ == "__main__":
    main()
