"""The atlas is deformed without folds."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from medstyle.errors import UserError
from medstyle.phantom.anatomy import NODE_MM, atlas_files, deformation, load_atlas


@pytest.mark.parametrize("seed", [0, 1])
def test_deformation_moves_millimetres_and_never_folds(seed: int) -> None:
    displacement, _ = deformation(np.random.default_rng(seed), load_atlas())
    size = np.linalg.norm(displacement, axis=0)
    assert 2 < size.mean() < 10
    gradient = np.stack([np.stack(np.gradient(d, NODE_MM)[::-1], -1) for d in displacement], -2)
    assert np.linalg.det(gradient + np.eye(3)).min() > 0


def test_a_missing_atlas_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install medstyle\[phantom\]"):
        atlas_files()
