"""A training that starts from a translator: what is taken, what is named, the same bits again."""

import pytest
import torch

from medstyle.errors import ModelError, ParamsError, UserError
from medstyle.networks.networks import Architecture, Networks
from medstyle.params import parse
from medstyle.stages import train as stage
from medstyle.training.loop import fit
from medstyle.training.plan import Plan
from medstyle.training.start import CODES, CONTENT, hold, take_weights
from tests.inference.conftest import make_translator

PLAN = {
    "source": "mr_t1", "target": "mr_t2", "start": "model",
    "training": {"steps": 8, "batch": 2, "threads": 1, "device": "cpu", "checkpoint_s": 0.0, "log_every": 2,
                 "validate_every": 4},
    "objective": {"weights": {"adversarial": 0.0}},
    "network": {"widths": [4, 6], "bottleneck_blocks": 2},
}  # fmt: skip


def plan(**training):
    return parse(Plan, {**PLAN, "training": {**PLAN["training"], **training}}, "train")


def networks(domains=("mr_t1", "mr_t2"), **changes):
    torch.manual_seed(99)
    return Networks(Architecture(**{"widths": (4, 6), "bottleneck_blocks": 2, **changes}), domains)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_all_weights_of_an_equal_network_are_taken():
    start, own = make_translator(), networks()
    taken = take_weights(own, ("mr_t1", "mr_t2"), start)
    assert same(own, start.members[0])
    assert taken.left == ()
    assert taken.line() == f"{len(own.state_dict())} of {len(own.state_dict())} weights taken"


def test_what_differs_is_named_and_stays_random():
    """Another number of neighbours changes the first convolution alone; codes belong to domains."""
    start = make_translator(("brain", "mr_t2", "mr_flair"))
    own, before = networks(("mr_t1", "mr_flair@north"), neighbours=3), networks(neighbours=3)
    taken = take_weights(own, ("mr_t1", "mr_flair@north"), start)
    assert taken.left == ("generator.encoder.0.0.conv.conv.weight", CODES)
    assert "not taken: generator.encoder.0.0.conv.conv, style.codes" in taken.line()
    now, theirs = own.state_dict(), start.members[0].state_dict()
    assert torch.equal(now[taken.left[0]], before.state_dict()[taken.left[0]])
    assert torch.equal(now[CODES][1], theirs[CODES][2]), "FLAIR of a site starts as FLAIR"
    assert not torch.equal(now[CODES][0], theirs[CODES][0]), "no T1 to take"


def test_a_network_of_another_kind_is_refused_with_the_remedy():
    own = networks(widths=(5, 7))
    with pytest.raises(ParamsError, match=r"train\.start: no weight .*; set network .*, or leave start out"):
        take_weights(own, ("mr_t1", "mr_t2"), make_translator())


def run(store, scratch, start, stop=None, **training):
    def show(step, values):
        if step == stop and "resumed" not in values:
            raise KeyboardInterrupt

    [members], _ = fit(plan(**training), store, scratch, lambda step, values: None, show, start)
    return members


def test_twice_from_one_start_and_resumed_are_the_same_bits(store, tmp_path):
    start = make_translator()
    one = run(store, tmp_path / "a", start, freeze_start=4)
    assert same(one, run(store, tmp_path / "b", start, freeze_start=4))
    for stop in (3, 6):  # while some weights are still, and afterwards
        with pytest.raises(KeyboardInterrupt):
            run(store, tmp_path / f"c{stop}", start, stop, freeze_start=4)
        assert same(one, run(store, tmp_path / f"c{stop}", start, freeze_start=4))
    assert not same(one, run(store, tmp_path / "d", start))
    assert not same(one, run(store, tmp_path / "e", make_translator(members=2), freeze_start=0))


def test_frozen_weights_do_not_move_and_the_others_do(store, tmp_path):
    start = make_translator()
    done = run(store, tmp_path / "a", start, freeze_start=8).state_dict()
    theirs = start.members[0].state_dict()
    for name, value in done.items():
        assert torch.equal(value, theirs[name]) == name.startswith(CONTENT), name
    own = networks()
    taken = take_weights(own, ("mr_t1", "mr_t2"), start)
    hold(own, taken, still=True)
    hold(own, taken, still=False)
    assert all(weight.requires_grad for weight in own.parameters())


def test_the_stage_records_its_start_and_a_state_of_another_is_not_resumed(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, members in (("model", 1), ("other", 2)):
        make_translator(members=members).save(tmp_path / name)

    def go(settings, stop=None):
        def log(step, values):
            if step == stop:
                raise KeyboardInterrupt

        stage.run(settings, store.folder, tmp_path / "out", tmp_path / "curve.csv", log)

    with pytest.raises(KeyboardInterrupt):
        go(plan(log_every=1), stop=5)
    make_translator(members=2).save(tmp_path / "model")  # the same name, other weights
    capsys.readouterr()
    go(plan(log_every=1))
    said = capsys.readouterr().err
    assert "starting afresh" in said
    assert "weights taken" in said
    facts = stage.Translator.load(tmp_path / "out").config.facts
    assert facts["start"] == f"model, weights sha256 {stage.Translator.load(tmp_path / 'model').sha256}"
    assert facts["start"] in (tmp_path / "out/MODEL_CARD.md").read_text()


def test_an_unknown_start_is_one_line_with_the_remedy(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"^train\.start: model: not a translator folder .* anybrain$") as error:
        stage.run(plan(), store.folder, tmp_path / "out", tmp_path / "curve.csv")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"freeze_start: needs train\.start"):
        parse(Plan, {**PLAN, "start": None, "training": {"freeze_start": 3}}, "train")
