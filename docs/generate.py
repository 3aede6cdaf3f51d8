"""Write the generated pages: parameters, command line, Python, codes, files (``make docs``)."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import typing
from pathlib import Path
from typing import Any

from medstyle.project.reference import (
    SECTIONS,
    dataclasses_in,
    default_text,
    field_docs,
    limits_text,
    section,
    type_text,
)

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
NOTE = "<!-- Written by docs/generate.py; `make docs` renews it. -->"

FILES = {  # what has no docstring
    "Makefile": "The commands: `make` alone lists them.",
    "dvc.yaml": "The stages: command, dependencies, parameters and outputs of each.",
    "params.yaml": "The parameters of the run, one section for each stage.",
    "prefect.yaml": "Deployments and schedules.",
    "Dockerfile": "The environment for Docker and Kubernetes work pools.",
    "pyproject.toml": "Dependencies with reasons, settings of the tools, the order of layers.",
    "requirements.lock": "The pinned environment that `make` installs.",
    "CHANGELOG.md": "What changed for users.",
    "CONTRIBUTING.md": "How to change the code.",
    "LICENSE": "Apache License 2.0.",
    "recipes/": "Complete params files for other tasks.",
    "docs/": "This documentation; `docs/generate.py` writes the generated pages of `docs/reference/`.",
    "slicer/": "A module of 3D Slicer, in one file.",
    "tests/": "Tests; the folders mirror those of `medstyle/`.",
    "medstyle/evaluation/report.html": "Template of the report.",
    "medstyle/studio/web/": "The page of the studio; `vendor/` is NiiVue with its licence.",
}
ENVIRONMENT = {  # variables that the commands read
    "MEDSTYLE_SECRET": "The secret of the keyed hashes that name subjects.",
    "MEDSTYLE_SECRET_FILE": "A file that holds the secret, instead of `MEDSTYLE_SECRET`.",
    "MEDSTYLE_DEBUG": "Shows the text of unexpected errors, which may hold patient data.",
    "MEDSTYLE_MODELS": "The folder of installed models, instead of `~/.local/share/medstyle/models`.",
    "MLFLOW_TRACKING_URI": "The MLflow server; without it everything is in `mlflow.db` and `mlruns/`.",
    "PREFECT_API_URL": "The Prefect server of the flows; without it they run without one.",
    "OMP_NUM_THREADS": "The number of threads of each process of `medstyle serve`.",
    "OMP_WAIT_POLICY": "`passive` unless it is set: idle threads sleep; `active` is faster for one job on a machine.",
}
REFERENCE_PAGES = {  # pages written by hand, listed in the index beside the generated ones
    "dicom.md": "DICOM and volume files: what is read, what is refused, what is written",
    "headers.md": "Fields of headers: applied, checked, refused or irrelevant",
    "serving.md": "Serving: requests, parameters, limits, endpoints, metrics, audit",
    "evaluation.md": "Evaluation: protocols, baselines, statistics, safety measures",
}


def pages() -> dict[Path, str]:
    """Return every generated page by its path."""
    made = {"parameters.md": parameters(), "command-line.md": command_line(), "tree.md": tree()}
    made["python.md"] = public_names()
    if codes_page := codes():
        made["codes.md"] = codes_page
    made["README.md"] = index(made)
    return {REFERENCE / name: text for name, text in made.items()}


def main() -> None:
    """Write the pages; say which have changed."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for path, text in pages().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)} renewed", file=sys.stderr)


def index(made: dict[str, str]) -> str:
    """Return the list of all reference pages."""
    titles = {name: text.splitlines()[0].removeprefix("# ") for name, text in made.items()} | REFERENCE_PAGES
    rows = [f"- [{titles[name]}]({name})" for name in sorted(titles, key=titles.__getitem__)]
    return "\n".join(["# Reference", "", NOTE, "", *rows, ""])


# parameters


def parameters() -> str:
    """Return one section for each stage and each nested group, with every field's type, default and
    docstring."""
    lines = [
        "# Parameters", "", NOTE, "",
        "`params.yaml` and every file in `recipes/` have one section for each stage; `door` is that of",
        "`medstyle listen`, which only a station needs. A key that is left out keeps its default, an unknown",
        "key or a value of the wrong type is an error. In a path such as `train.objective.kind` the first",
        "word is the section.",
        "",
    ]  # fmt: skip
    for name in SECTIONS:
        lines += _group(section(name), name)
    return "\n".join([*lines, *_domains()])


def _domains() -> list[str]:
    """Return the table of domains."""
    from medstyle.imaging.modality import DOMAINS

    text = (
        "Wherever a parameter names a domain, it is one of these. A suffix makes a domain of its own with the same "
        "unit, for a site, a scanner or a variant: `mr_t1@north`, `photo@poor`. Targets that several protocols "
        "acquired are learned best as domains of their own ([measured](../benchmarks.md#two-protocols-of-one-target))."
    )
    lines = ["## Domains", "", *_wrapped(text), "", "| domain | what | unit | channels |", "|---|---|---|---|"]
    return [*lines, *(f"| `{name}` | {m.label} | {m.unit} | {m.channels} |" for name, m in DOMAINS.items()), ""]


def _group(cls: type, path: str) -> list[str]:
    """Return the section of one dataclass, followed by those of the dataclasses among its
    fields."""
    return [
        f"## {path}",
        "",
        *_wrapped(_plain(inspect.getdoc(cls) or "")),
        "",
        *_table(_rows(cls, path)),
        *_below(cls, path),
    ]


def _choice(classes: list[type], path: str) -> list[str]:
    """Return the sections of a field that may be any of several dataclasses: what they share, then
    what each adds."""
    rows = [_rows(cls, path) for cls in classes]
    shared = {key: row for key, row in rows[0].items() if all(other.get(key) == row for other in rows)}
    links = ", ".join(f"[{_kind(cls)}]({_anchor(f'{path} ({_kind(cls)})')})" for cls in classes)
    lines = [f"## {path}", "", "One of several groups, told apart by `kind`. All have these keys:", "", *_table(shared)]
    lines += [*_wrapped(f"Each kind adds keys of its own: {links}."), ""]
    for cls, own in zip(classes, rows, strict=True):
        lines += [f"## {path} ({_kind(cls)})", "", *_wrapped(_plain(inspect.getdoc(cls) or "")), ""]
        lines += [
            *_table({key: row for key, row in own.items() if key not in shared}),
            *_weights(cls),
            *_below(cls, path),
        ]
    return lines


def _kind(cls: type) -> str:
    """Return the value of ``kind`` that chooses a dataclass."""
    return str(getattr(cls, "kind", cls.__name__))


def _table(rows: dict[str, str]) -> list[str]:
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows.values(), ""]


def _rows(cls: type, path: str) -> dict[str, str]:
    """Return one row for each field of a dataclass."""
    hints, extras, docs = typing.get_type_hints(cls), typing.get_type_hints(cls, include_extras=True), field_docs(cls)
    rows = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        kind = f"[group]({_anchor(f'{path}.{field.name}')})" if [*dataclasses_in(hint)] else type_text(hint)
        if [*dataclasses_in(hint)] and typing.get_origin(hint) is tuple:
            kind = f"list of {kind}"
        meaning = " ".join(filter(None, [docs.get(field.name, ""), limits_text(extras[field.name])]))
        rows[field.name] = (
            f"| `{field.name}` | {_cell(kind)} | {_cell(default_text(field))} | {_cell(_plain(meaning))} |"
        )
    return rows


def _below(cls: type, path: str) -> list[str]:
    """Return the sections of the dataclasses among the fields of one."""
    lines = []
    for field in dataclasses.fields(cls):
        inner = list(dict.fromkeys(dataclasses_in(typing.get_type_hints(cls)[field.name])))
        if len(inner) > 1:
            lines += _choice(inner, f"{path}.{field.name}")
        elif inner:
            lines += _group(inner[0], f"{path}.{field.name}")
    return lines


def _weights(cls: type) -> list[str]:
    """Return the terms of a kind of objective with their default weights."""
    modules = [module for name, module in sys.modules.items() if name.startswith("medstyle.")]
    objectives: dict[str, Any] = next((module.OBJECTIVES for module in modules if hasattr(module, "OBJECTIVES")), {})
    resolve = getattr(objectives.get(_kind(cls)), "resolve", None)
    if resolve is None:
        return []
    terms = ", ".join(f"`{name}: {weight:g}`" for name, weight in resolve(cls()).items())
    return ["| [terms](../explanation/training.md#terms) with their default `weights` |", "|---|", f"| {terms} |", ""]


# command line


def command_line() -> str:
    """Return what ``medstyle --help`` says, and each command's help, as one page."""
    from medstyle.cli import app

    lines = ["# Command line", "", NOTE, "", *_wrapped(_plain(app.info.help or "")), ""]
    lines += _wrapped(
        "Every command exits with 0 on success, with 2 and one line that names cause and remedy on bad input, and "
        "with 1 on an unexpected error; `inspect` exits with 3 if it refused something."
    )
    lines.append("")
    for command in app.registered_commands:
        function: Any = command.callback
        lines += [f"## medstyle {command.name or function.__name__.replace('_', '-')}", ""]
        for paragraph in _plain(inspect.getdoc(function) or "").split("\n\n"):
            if paragraph.startswith("Example: "):
                lines += ["```", paragraph.removeprefix("Example: "), "```", ""]
            else:
                lines += [*_wrapped(paragraph), ""]
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        if rows := [_parameter(parameter) for parameter in parameters]:
            lines += ["| argument or option | default | meaning |", "|---|---|---|", *rows, ""]
    lines += ["## Environment", "", "| variable | meaning |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {text} |" for name, text in ENVIRONMENT.items()), ""])


def _parameter(parameter: inspect.Parameter) -> str:
    hint, info = typing.get_args(parameter.annotation)[:2]
    required = parameter.default is inspect.Parameter.empty
    if type(info).__name__ == "ArgumentInfo":
        name = info.metavar or parameter.name.upper()
    else:
        # typer takes the first flag of an annotated option from the place of its default
        named = [word for word in (info.default, *(info.param_decls or ())) if isinstance(word, str)]
        flag = named[0] if named else f"--{parameter.name.replace('_', '-')}"
        name = flag if hint is bool else f"{flag} {info.metavar or _value(hint)}"
        if typing.get_origin(hint) is list or any(typing.get_origin(a) is list for a in typing.get_args(hint)):
            name += " (repeatable)"
    plain = parameter.default is None or parameter.default is False
    default = "required" if required else "" if plain else f"`{parameter.default}`"
    return f"| `{_cell(name)}` | {default} | {_cell(_plain(info.help or ''))} |"


def _value(hint: Any) -> str:
    """Name the value of an option, as the help does."""
    origin, arguments = typing.get_origin(hint), [a for a in typing.get_args(hint) if a is not type(None)]
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if arguments:
        return " ".join(map(_value, arguments))
    names: dict[Any, str] = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}
    return names.get(hint) or str(hint.__name__).upper()


# Python


def public_names() -> str:
    """Return the public names with their signatures and examples, and the dictionary transforms."""
    import medstyle
    from medstyle.transforms import dictionary

    lines = ["# Python", "", NOTE, ""]
    lines += _wrapped(
        "`from medstyle import ...` gives every name below. Every error that a caller can act on is a `UserError`; a "
        "`Refusal` is one with a [code](codes.md). Images are NumPy arrays `(D, H, W)` or `(H, W, 3)`."
    )
    for name in sorted(medstyle.__all__, key=str.lower):
        lines += ["", f"## {name}", "", *_about(name, getattr(medstyle, name))]
    lines += ["", "## MONAI dictionary transforms", ""]
    lines += _wrapped(
        "`medstyle.transforms.dictionary` has the preparation as transforms for `monai.transforms.Compose`."
    )
    lines += ["", "| transform | purpose |", "|---|---|"]
    for name, item in vars(dictionary).items():
        if inspect.isclass(item) and item.__module__ == dictionary.__name__ and not name.startswith("_"):
            lines.append(f"| `{name}` | {_cell(_plain((inspect.getdoc(item) or '').partition(chr(10))[0]))} |")
    return "\n".join([*lines, ""])


def _about(name: str, item: Any) -> list[str]:
    """Return the first paragraph of a name's docstring, its signature and its example."""
    if not (inspect.isclass(item) or inspect.isfunction(item)):
        tells = f", with the keys {', '.join(f'`{key}`' for key in item)}" if isinstance(item, dict) else ""
        return _wrapped(f"A constant or type alias{tells}.")
    doc = inspect.getdoc(item) or ""
    lines = _wrapped(_plain(doc.partition("\n\n")[0]))
    if inspect.isfunction(item):
        signature = inspect.signature(item)
        bare = signature.replace(
            parameters=[_withouttype_text(parameter) for parameter in signature.parameters.values()],
            return_annotation=signature.empty,
        )
        lines = ["```python", f"{name}{bare}".replace("'", '"'), "```", "", *lines]
    _, mark, example = doc.partition("Example:\n")
    if mark:
        lines += ["", "```python", *(line[4:] for line in example.partition("\n\n")[0].splitlines()), "```"]
    return lines


def _withouttype_text(parameter: inspect.Parameter) -> inspect.Parameter:
    """Remove the annotation, and the fields of a default that is a dataclass."""
    default = parameter.default
    if dataclasses.is_dataclass(default):
        default = type(type(default).__name__, (), {"__repr__": lambda self: f"{type(self).__name__}()"})()
    return parameter.replace(annotation=parameter.empty, default=default)


# codes


def codes() -> str:
    """Return the table of the codes of refusals, once the package has an enumeration of them."""
    errors = importlib.import_module("medstyle.errors")
    if not hasattr(errors, "Code"):
        return ""
    rows = [f"| `{code.value}` | {_cell(_plain(code.meaning))} |" for code in sorted(errors.Code)]
    text = _wrapped(
        "Every refusal carries one of these codes. They are stable, so that programs may depend on them. "
        "[DICOM](dicom.md#codes) adds remedies."
    )
    return "\n".join(["# Codes", "", NOTE, "", *text, "", "| code | meaning |", "|---|---|", *rows, ""])


# tree


def tree() -> str:
    """Return one line for each file of the code, from the first line of its docstring."""
    lines = ["# Files", "", NOTE, "", "| file | purpose |", "|---|---|"]
    lines += [f"| `{name}` | {text} |" for name, text in FILES.items() if not name.startswith("medstyle/")]
    folders = [path for path in sorted((ROOT / "medstyle").rglob("*")) if path.is_dir() and any(path.glob("*.py"))]
    for folder in [ROOT / "flows", ROOT / "medstyle", *folders, ROOT / "benchmarks", ROOT / "benchmarks/peers"]:
        name = folder.relative_to(ROOT).as_posix() + "/"
        lines += ["", f"## {name}", ""]
        if (folder / "__init__.py").is_file():
            lines += [*_wrapped(_first_line(folder / "__init__.py")), ""]
        lines += ["| file | purpose |", "|---|---|"]
        lines += [
            f"| `{p.name}` | {_cell(_first_line(p))} |" for p in sorted(folder.glob("*.py")) if p.stem != "__init__"
        ]
        lines += [f"| `{k.removeprefix(name)}` | {t} |" for k, t in FILES.items() if (ROOT / k).parent == folder]
    lines += ["", "## recipes/", "", "| file | purpose |", "|---|---|"]
    lines += [f"| `{p.name}` | {_cell(_heading(p))} |" for p in sorted((ROOT / "recipes").glob("*.yaml"))]
    return "\n".join([*lines, ""])


def _first_line(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return _plain(doc.partition("\n")[0])


def _heading(path: Path) -> str:
    """Return the first sentence of the comment that begins a YAML file."""
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return re.split(r"(?<=\.)\s", " ".join(comment), maxsplit=1)[0]


# Markdown


def _plain(text: str) -> str:
    """Turn the markup of docstrings into that of Markdown."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text.replace("``", "`"))
    return text.replace("<", "\\<") if "`" not in text else text


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(title: str) -> str:
    """Return the address of a heading, as GitHub makes it."""
    return "#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(" ".join(text.split()), 100, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    main()
