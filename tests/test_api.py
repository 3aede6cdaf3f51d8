import json
import subprocess
import sys

import medstyle


def test_public_names_are_the_api():
    assert sorted(medstyle.__all__) == sorted(medstyle._WHERE)
    for name in medstyle.__all__:
        assert getattr(medstyle, name) is not None


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
print(medstyle.translate_path(Path({str(run.study)!r}), Path({str(tmp_path / "out")!r}), translator, force=True))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 8
