import hashlib
import json
import resource
import shutil
import time

import pytest
import torch

from medstyle import Translator, UserError
from medstyle.networks.translator import model_card
from tests.inference.conftest import make_translator


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


HOSTILE = {
    "width": lambda c: c["architecture"].update(widths=[10**6] * 3),
    "widths": lambda c: c["architecture"].update(widths=[4096] * 9),
    "levels": lambda c: c["architecture"].update(widths=[1] * 10**5),
    "style": lambda c: c["architecture"].update(style_size=4096),
    "blocks": lambda c: c["architecture"].update(bottleneck_blocks=99),
    "neighbours": lambda c: c["architecture"].update(neighbours=99),
    "contrasts": lambda c: c.update(contrasts=["mr_pd"] * 10**5),
    "domains": lambda c: c.update(domains=["mr_t1"] * 10**5),
    "no number": lambda c: c["architecture"].update(style_size=1e400),
    "words": lambda c: c["architecture"].update(widths="junk"),
    "nothing": lambda c: c.clear(),
    "format 2": lambda c: c.update(format=2),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_configuration_asks_for_no_more_than_its_weights_are(name, folder):
    path = folder / "translator.json"
    config = json.loads(path.read_text())
    HOSTILE[name](config)
    path.write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError):
        Translator.load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # kB


@pytest.mark.parametrize("text", ["[" * 10**5, '{"format": 3}', "null", "[]", "\0"])
def test_a_configuration_that_is_none_is_named(text, folder):
    (folder / "translator.json").write_text(text)
    with pytest.raises(UserError):
        Translator.load(folder)


def test_weights_that_lie_are_named(folder):
    path = folder / "weights.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    lies = [(1 << 62).to_bytes(8, "little") + data[8:], b"", data[: 8 + size]]
    for change in ({"shape": [10**9, 10**9]}, {"data_offsets": [0, 1 << 60]}, {"dtype": "F64"}, {"shape": [-1]}):
        text = json.dumps({**header, name: {**header[name], **change}}).encode()
        lies.append(len(text).to_bytes(8, "little") + text + data[8 + size :])
    for lie in lies:
        path.write_bytes(lie)
        with pytest.raises(UserError, match="weights"):
            Translator.load(folder)


def test_slow_patterns_are_not_slow(folder):
    """A pattern of shell, not a regular expression, whose search could take forever."""
    config = json.loads((folder / "translator.json").read_text())
    config["rules"] = [{"domain": "mr_t1", "when": {"path": "*a" * 500 + "b"}}]
    (folder / "translator.json").write_text(json.dumps(config))
    [rule] = Translator.load(folder).config.rules
    start = time.process_time()
    assert not rule.matches({"path": "a" * 5000})
    assert time.process_time() - start < 10


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
    assert "other targets" not in card


def test_another_domain_may_be_the_target():
    """The card names it; what it renders is what `--to` gives, without the target's interval."""
    several = make_translator(("mr_t1", "mr_t2@north", "mr_t2"))
    assert "- other targets (`--to`): mr_t2@north\n" in model_card(several.config, several.sha256)
    north = several.towards("mr_t2@north")
    x = torch.rand(1, 1, 32, 32)
    assert torch.equal(north(x), several(x, "mr_t2@north"))
    assert not torch.equal(north(x), several(x))
    assert several.towards("mr_t2") is several
    with pytest.raises(UserError, match="knows mr_t1, mr_t2@north, mr_t2, not 'ct'"):
        several.towards("ct")
