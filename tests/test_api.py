import doctest
import importlib
import inspect
import json
import re
import subprocess
import sys

import pytest

import medstyle
from medstyle import errors, params
from tests.conftest import ROOT


def test_public_names_are_the_api():
    assert sorted(medstyle.__all__) == sorted(medstyle._WHERE)
    for name in medstyle.__all__:
        assert getattr(medstyle, name) is not None


def types_in(signature):
    """Yield the names of our own types in the annotations of a function."""
    for annotation in signature:
        yield from re.findall(r"\b([A-Z][A-Za-z]+)\b", str(annotation))


def public_functions():
    for name in medstyle.__all__:
        value = getattr(medstyle, name)
        if inspect.isclass(value) and value.__module__.startswith("medstyle"):
            for method, function in inspect.getmembers(value, inspect.isfunction):
                if not method.startswith("_") or method in ("__init__", "__call__"):
                    yield f"{name}.{method}", function
        elif inspect.isfunction(value):
            yield name, value


OWN = {  # names of our classes and aliases, wherever they are
    name
    for path in (ROOT / "medstyle").rglob("*.py")
    for name in re.findall(r"^(?:class ([A-Z]\w+)|([A-Z][a-z]\w+) = )", path.read_text(), re.MULTILINE)
    for name in name
    if name
}
# names of the standard library, aliases of literals and unions, and what a caller passes on without
# looking into it
INTERNAL = {
    "Mapping",
    "Sequence",
    "Kind",
    "Source",
    "Image",
    "Series",
    "Networks",
    "Architecture",
    "Preparation",
    "Rule",
}


@pytest.mark.parametrize(("name", "function"), list(public_functions()))
def test_every_type_in_a_public_signature_is_public(name, function):
    used = set(types_in(getattr(function, "__annotations__", {}).values())) & OWN
    assert used - INTERNAL <= set(medstyle.__all__)


def test_what_a_caller_catches_is_a_kind_of_user_error():
    kinds = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    assert all(issubclass(kind, medstyle.UserError) for kind in kinds)
    assert {kind.__name__ for kind in kinds} <= set(medstyle.__all__)


@pytest.mark.parametrize(
    "module",
    sorted(path for path in (ROOT / "medstyle").rglob("*.py") if ">>> " in path.read_text()),
    ids=lambda p: p.stem,
)
def test_examples_in_docstrings_run(module):
    name = ".".join(module.relative_to(ROOT).with_suffix("").parts)
    outcome = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_a_former_key_of_params_is_refused_with_its_new_name():
    for old, new in params.RENAMED.items():
        section, _, rest = old.partition(".")
        values: dict = {"source": "mr_t1", "target": "mr_t2"} if section == "train" else {}
        inside = values
        *path, key = rest.split(".")
        for part in path:
            inside = inside.setdefault(part, {})
        inside[key] = 1
        stage = importlib.import_module(f"medstyle.stages.{section}")
        with pytest.raises(medstyle.ParamsError, match=f"has been renamed to {new}"):
            params.parse(stage.Params, values, f"params.yaml: {section}")


def test_help_needs_no_heavy_import():
    code = (
        "import sys, json\nsys.argv = ['medstyle', '--help']\nfrom medstyle.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint(json.dumps(sorted(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(json.loads(out.splitlines()[-1]))
    assert not loaded & {"torch", "monai", "mlflow", "prefect", "numpy", "pydicom", "SimpleITK", "pydantic", "scipy"}


def test_the_library_reads_and_translates_without_the_ops_packages(run, tmp_path):
    """`pip install medstyle` without extras has no DVC, Prefect or MLflow."""
    code = f"""
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dvc", "prefect", "mlflow", "nilearn"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Forbid())
from pathlib import Path
import medstyle
translator = medstyle.Translator.load({str(run.translator)!r})
request = medstyle.Request(force=True)
print(medstyle.translate_path(Path({str(run.study)!r}), Path({str(tmp_path / "out")!r}), translator, request))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 8
