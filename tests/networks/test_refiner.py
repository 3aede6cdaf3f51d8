"""A refiner adds detail and nothing else, in a share that its user chooses."""

import numpy as np
import pytest
import torch

from medstyle.errors import ModelError, ParamsError
from medstyle.networks.networks import Architecture, Networks
from medstyle.networks.refiner import ADDED, Refiner, detail_of
from medstyle.networks.translator import Translator, TranslatorConfig
from medstyle.transforms.prepare import Preparation

SIZES = {2: (40, 36), 3: (8, 40, 36)}


def networks(dims: int = 2, refiner: int = 4) -> Networks:
    torch.manual_seed(0)
    made = Networks(
        Architecture(widths=(4, 6), bottleneck_blocks=1, dimensions=dims, refiner=refiner), ["mr_t1", "mr_t2"]
    )
    return made.eval().requires_grad_(False)


def translator(refiner: int = 4) -> Translator:
    made = networks(refiner=refiner)
    architecture = Architecture(widths=(4, 6), bottleneck_blocks=1, refiner=refiner)
    config = TranslatorConfig(architecture, ("mr_t1", "mr_t2"), "mr_t1", "mr_t2", Preparation(), {})
    return Translator(config, [awake(made) if refiner else made])


def awake(made: Networks) -> Networks:
    """Give the refiner something to add."""
    assert made.refiner is not None
    for weight in made.refiner.network.head.parameters():
        torch.nn.init.normal_(weight)
    return made


def picture(dims: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.rand(2, 1, *SIZES[dims], generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dims", [2, 3])
def test_an_untrained_refiner_adds_nothing(dims):
    made, x = networks(dims), picture(dims)
    code = made.style(torch.ones(2, dtype=torch.long))
    torch.testing.assert_close(made.render(x, code), made.render(x, code, sharpness=0), rtol=0, atol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_half_the_sharpness_is_the_middle_of_both_ends(dims):
    made, x = awake(networks(dims)), picture(dims)
    code = made.style(torch.ones(2, dtype=torch.long))
    smooth, half, sharp = (made.render(x, code, sharpness) for sharpness in (0.0, 0.5, 1.0))
    assert float((sharp - smooth).abs().mean()) > 1e-3
    torch.testing.assert_close(half, (smooth + sharp) / 2)


def test_grey_levels_of_regions_stay_and_air_stays_air():
    torch.manual_seed(0)
    refiner = Refiner(1, 1, 4, 8, 2, air=True)
    for weight in refiner.network.head.parameters():
        torch.nn.init.normal_(weight)
    x = torch.rand(1, 1, 96, 96)
    x[..., :20] = -1.0
    with torch.no_grad():
        added = refiner(x, x, x, torch.zeros(1, 8))
    assert not added[..., :20].any()
    inside = added[..., 32:]
    regions = torch.nn.functional.avg_pool2d(inside, round(8 * ADDED), stride=8)
    assert float(regions.abs().max()) < 0.15 * float(inside.std())


def test_detail_has_no_slope_and_no_level():
    rows, columns = np.mgrid[:48, :48].astype(np.float32)
    plane = torch.from_numpy(0.3 + 0.01 * rows - 0.02 * columns)[None, None]
    assert float(detail_of(plane, 2.0)[..., 8:-8, 8:-8].abs().max()) < 1e-4
    volume = torch.rand(1, 1, 3, 20, 20)
    slices = torch.cat([detail_of(volume[:, :, z], 2.0)[:, :, None] for z in range(3)], 2)
    torch.testing.assert_close(detail_of(volume, 2.0), slices)


def test_a_saved_translator_keeps_its_sharpness(tmp_path):
    full, x = translator(), picture()
    soft = full.sharpened(0.25)
    soft.save(tmp_path / "soft")
    again = Translator.load(tmp_path / "soft")
    torch.testing.assert_close(again(x), soft(x))
    assert not torch.allclose(again(x), full(x))
    assert full.sharpened(None) is full


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_sharpness_out_of_range_is_refused(share):
    with pytest.raises(ParamsError, match="sharpness: must lie in"):
        translator().sharpened(share)


def test_a_model_without_a_refiner_has_no_dial():
    with pytest.raises(ModelError, match="no refiner"):
        translator(refiner=0).sharpened(0.5)
