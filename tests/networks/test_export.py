import json

import pytest
import torch
from torch import nn

from medstyle import Translator, UserError
from medstyle.networks.export import SUFFIXES, export
from medstyle.networks.networks import Architecture, Networks
from medstyle.networks.translator import TranslatorConfig
from medstyle.params import parse


def translator(dims, members=1, domains=("mr_t1", "mr_t2"), contrasts=("mr_pd",), **architecture):
    settings = {"widths": (4, 6), "bottleneck_blocks": 1, "dimensions": dims, "residual": True, **architecture}
    config = TranslatorConfig(
        Architecture(**settings), list(domains), domains[0], domains[1], {}, {}, contrasts=list(contrasts)
    )
    torch.manual_seed(0)
    networks = [Networks(config.architecture, config.domains, 1 + len(contrasts)).eval() for _ in range(members)]
    for one in networks:
        for parameter in one.parameters():
            nn.init.normal_(parameter, std=0.2)
    return Translator(config, networks)


def restored(path):
    if path.suffix == ".ts":
        return torch.jit.load(path)
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"content": x.numpy()})[0])


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exported_and_eager_agree_at_other_sizes_too(suffix, dims, tmp_path):
    model = translator(dims, members=2)
    export(model, tmp_path / f"model{suffix}")
    run = restored(tmp_path / f"model{suffix}")
    for n, size in ((1, (16, 10, 14)), (3, (8, 24, 20))):
        x = torch.randn(n, 2, *size[-dims:])
        torch.testing.assert_close(run(x), model(x), atol=1e-4, rtol=1e-4)


PICTURES = {"domains": ("photo", "painting"), "contrasts": (), "residual": False}  # bounded, continued at borders
KINDS = {
    "2.5-D": {"neighbours": 3},
    "pictures": PICTURES,
    "pictures with a level without skip": {**PICTURES, "levels_without_skip": 1},
    "a MONAI network": {"generator": "unet"},
    "a refiner": {"widths": (4, 6, 8), "refiner": 4},
    "folded pixels": {"fold": 2},
}


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        pytest.param(suffix, kind, marks=() if suffix == ".ts" else pytest.mark.slow)
        for suffix in SUFFIXES
        for kind in KINDS
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_kind_of_translator_is_exported(suffix, kind, tmp_path):
    model = translator(2, **KINDS[kind])
    export(model, tmp_path / f"model{suffix}")
    first = model.members[0]
    channels = first.colours * (1 + len(model.config.contrasts)) * first.neighbours
    x = torch.randn(2, channels, 16, 24)
    torch.testing.assert_close(restored(tmp_path / f"model{suffix}")(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("suffix", [pytest.param(s, marks=() if s == ".ts" else pytest.mark.slow) for s in SUFFIXES])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_gives_the_style_of_one_reference(suffix, tmp_path):
    model = translator(2, **PICTURES, style=("reference",), palette=8)
    styles = [model.style(reference=torch.rand(1, 3, 32, 32) * 2 - 1) for _ in range(2)]
    export(model, tmp_path / f"model{suffix}", style=styles[0])
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    made = restored(tmp_path / f"model{suffix}")(x)
    torch.testing.assert_close(made, model(x, style=styles[0]), atol=5e-3, rtol=0)  # steep curves
    assert not torch.allclose(made, model(x, style=styles[1]), atol=1e-2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_says_what_comes_before_and_after_the_network(tmp_path):
    import onnxruntime

    model = translator(2, **KINDS["a refiner"]).sharpened(0.5)
    export(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert about["target"] == "mr_t2"
    assert parse(TranslatorConfig, json.loads(about["medstyle"]), "metadata") == parse(
        TranslatorConfig, json.loads(model.config.to_json()), "config"
    )


def test_an_unknown_format_is_named(tmp_path):
    with pytest.raises(UserError, match=r"must be one of \.onnx \(ONNX\)"):
        export(translator(2), tmp_path / "model.h5")
