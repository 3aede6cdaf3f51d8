"""Small real data for every test: phantom studies and a translator that was trained on them for a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[1]

TINY = {
    "acquire": {"subjects": 5, "matrix": 48, "slices": 8, "spacing_mm": [4.8, 4.8, 12.0], "lesions": 4},
    "ingest": {
        "rules": [
            {"domain": "mr_t1", "when": {"Modality": "MR", "SeriesDescription": "*T1*"}},
            {"domain": "mr_t2", "when": {"Modality": "MR", "SeriesDescription": "*T2*"}},
        ]
    },
    "denoise": {"size": [48, 40], "validation": 0.2, "test": 0.2},
    "train": {
        "source": "mr_t1",
        "target": "mr_t2",
        "training": {"steps": 12, "batch": 2, "threads": 1, "device": "cpu", "validate_every": 6, "log_every": 3},
        "objective": {"discriminator_width": 8},
        "network": {"widths": [4, 8, 8], "bottleneck_blocks": 2},
    },
    "evaluate": {},
    "register": {},
}


class Run(NamedTuple):
    """A finished tiny run: the project folder and the parts that tests need."""

    root: Path

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def translator(self) -> Path:
        return self.root / "models/translator"

    @property
    def study(self) -> Path:
        return self.root / "data/raw/studies/PHANTOM-0000"


def write_params(folder: Path, changes: dict | None = None) -> Path:
    """Write TINY, with sections replaced by ``changes``, as ``folder/params.yaml``."""
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({**TINY, **(changes or {})}))
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run acquire, ingest, denoise, train and evaluate once, through the stages' own functions."""
    from medstyle import params
    from medstyle.stages import acquire, denoise, evaluate, ingest, train

    root = tmp_path_factory.mktemp("run")
    file = write_params(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        data = Path("data")
        acquire.run(params.load(acquire.Params, "acquire", file), data / "raw")
        ingest.run(params.load(ingest.Params, "ingest", file), data / "scans", Path("reports/ingest.json"))
        denoise.run(params.load(denoise.Params, "denoise", file), data / "scans", data / "slices")
        model = Path("models/translator")
        train.run(params.load(train.Params, "train", file), data / "slices", model, Path("reports/training.csv"))
        settings = params.load(evaluate.Params, "evaluate", file)
        evaluate.run(settings, data / "scans", data / "slices", model, data / "raw/truth", Path("reports"))
    return Run(root)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)


def affine(spacing: tuple[float, float, float], degrees: tuple[float, float, float], origin=(-40.0, 30.0, 10.0)):
    """Make an oblique LPS affine."""
    from scipy.spatial.transform import Rotation

    result = np.eye(4)
    result[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing
    result[:3, 3] = origin
    return result
