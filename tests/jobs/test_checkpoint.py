"""States survive damage, a full disk and a kill, and belong to one run."""

import pytest
import torch

from medstyle.errors import UserError
from medstyle.jobs.checkpoint import load_state, run_key, save_state
from tests.data.conftest import make_store
from tests.training.conftest import train


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path):
    for step in (1, 2, 3):
        save_state(tmp_path, step, {"step": step, "x": torch.arange(1000)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000002.pt", "step-000000003.pt"]
    newest = tmp_path / "step-000000003.pt"
    newest.write_bytes(newest.read_bytes()[:500])
    assert load_state(tmp_path)["step"] == 2
    assert load_state(tmp_path / "none") is None


def test_a_full_disk_stops_with_its_cause_and_loses_nothing(tmp_path):
    """The kernel's own device that is always full stands where the state is written."""
    (tmp_path / "a").mkdir()
    save_state(tmp_path / "a", 1, {"step": 1})
    (tmp_path / "a/writing").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"after step 2 cannot be written .*free disk space"):
        save_state(tmp_path / "a", 2, {"step": 2, "x": torch.zeros(10**6)})
    assert load_state(tmp_path / "a") == {"step": 1}
    (tmp_path / "b").mkdir()
    (tmp_path / "b/writing").symlink_to("/dev/full")
    with pytest.raises(UserError, match="free disk space"):
        train(make_store(tmp_path / "store"), tmp_path / "b")


def test_anything_changed_is_another_run():
    assert run_key({"a": 1}, "data") == run_key({"a": 1}, "data")
    assert len({run_key({"a": 1}, "x"), run_key({"a": 2}, "x"), run_key({"a": 1}, "y")}) == 3
