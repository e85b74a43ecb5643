"""Dequantised levels: their law, the bins they must not leave, and what a loader makes of them."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from models.data import BinMiddles, Dequantisation, Images, loader
from models.data.images import intensities


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_level_leaves_its_bin(levels: int, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    i = torch.arange(levels, dtype=torch.uint8).expand(200_000 // levels, levels)
    x = Dequantisation(levels)(intensities(i, levels - 1))
    assert x.dtype == dtype
    assert torch.equal((x * levels).floor(), i.to(dtype))
    # The ends of the noise, which 200,000 draws need not meet.
    for u in (0.0, 1.0 - torch.finfo(dtype).eps / 2.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda shape, u=u, **options: torch.full(shape, u, dtype=options["dtype"]))
            x = Dequantisation(levels)(intensities(i, levels - 1))
        assert torch.equal((x * levels).floor(), i.to(dtype))
    middles = BinMiddles(levels)(intensities(i, levels - 1))
    torch.testing.assert_close(middles, (i.to(dtype) + 0.5) / levels)


def test_noise_is_uniform_in_the_bin_and_the_generators() -> None:
    level = torch.full((5000,), 200, dtype=torch.uint8)
    rule, values = Dequantisation(), intensities(level, 255)
    u = rule(values, torch.Generator().manual_seed(3)) * 256.0 - 200.0
    assert stats.kstest(u.double().numpy(), "uniform").pvalue > 1e-4
    assert torch.equal(rule(values, torch.Generator().manual_seed(3)) * 256.0 - 200.0, u)
    assert not torch.equal(rule(values), rule(values))


def test_loaders_dequantise() -> None:
    images = Images(torch.randint(17, (12, 1, 4, 4)).to(torch.uint8), maximum=16)
    batches = loader(images, 5, Dequantisation(17), shuffle=False)
    first, second = (torch.cat(list(batches)) for _ in range(2))
    assert not torch.equal(first, second)
    for x in (first, second):
        assert torch.equal((x * 17.0).floor(), images.levels.flatten(1).float())
    middles = loader(images, 5, BinMiddles(17), shuffle=False)
    assert torch.equal(torch.cat(list(middles)), torch.cat(list(middles)))


def test_names_and_errors() -> None:
    assert str(Dequantisation(17)) == "none: 17 levels, dequantised by fresh uniform noise"
    assert str(BinMiddles()) == "none: 256 levels, the middles of their bins"
    with pytest.raises(ValueError, match="levels must be at least 2, found 1"):
        Dequantisation(1)
    with pytest.raises(TypeError, match="levels must be an integer"):
        BinMiddles(2.5)  # type: ignore[arg-type]
    images = Images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), maximum=16)
    with pytest.raises(
        ValueError, match=r"levels=256 belongs to images with maximum=255, found maximum=16; take levels=17"
    ):
        loader(images, 1, Dequantisation())
    with pytest.raises(ValueError, match="must lie in"):
        Dequantisation()(torch.full((3,), 1.5))
