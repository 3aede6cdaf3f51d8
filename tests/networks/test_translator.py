import hashlib
import json
import shutil

import pytest
import torch

from medstyle import Translator, UserError
from medstyle.networks.translator import model_card


@pytest.fixture
def folder(run, tmp_path):
    return shutil.copytree(run.translator, tmp_path / "translator")


def test_a_folder_loads_as_it_was_saved(run, tmp_path):
    translator = Translator.load(run.translator)
    translator.save(tmp_path / "again")
    assert (tmp_path / "again/weights.safetensors").read_bytes() == (
        run.translator / "weights.safetensors"
    ).read_bytes()
    assert (tmp_path / "again/translator.json").read_text() == (run.translator / "translator.json").read_text()
    x = torch.randn(2, 1, 24, 24)
    assert torch.equal(translator(x), Translator.load(tmp_path / "again")(x))
    assert translator.sha256 == hashlib.sha256((run.translator / "weights.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [(24, 24), (25, 31), (7, 50)])
def test_any_size_keeps_its_size(run, size):
    translator = Translator.load(run.translator)
    assert translator(torch.randn(1, 1, *size)).shape == (1, 1, *size)


def test_unknown_domain_is_named(run):
    with pytest.raises(UserError, match="knows mr_t1, mr_t2, not 'ct'"):
        Translator.load(run.translator)(torch.zeros(1, 1, 8, 8), "ct")


def test_damage_is_named(folder):
    data = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(data[:-10])
    with pytest.raises(UserError, match="damaged"):
        Translator.load(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="not a translator folder"):
        Translator.load(folder)


def test_another_format_is_named(folder):
    config = json.loads((folder / "translator.json").read_text())
    (folder / "translator.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        Translator.load(folder)


def test_the_card_names_weights_limits_and_data(run):
    translator = Translator.load(run.translator)
    card = model_card(translator.config, translator.sha256)
    for expected in (translator.sha256, "not a medical device", "out of scope", "training subjects: 3"):
        assert expected in card
