"""Annealing from a guide's moments: amortised guides, and the posteriors that fits return."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avbvi import AVBGuide
from avbvi.amortised.samplers import ConditionalGaussianSampler
from avbvi.annealed import SigmoidTemperatures, annealed_importance_sampling, bidirectional_sandwich
from avbvi.annealed.problems import density_of, guide_start
from models.vaes import VAE, NormalLikelihood
from tests.annealed.known import LinearGaussian

PLAIN = {"leapfrog_steps": 4, "progress": False, "seed": 0}


def example() -> tuple[LinearGaussian, VAE, AVBGuide]:
    density = LinearGaussian.simulated(20, 5, 2, noise=1.2)
    decoder = nn.Linear(2, 5)
    with torch.no_grad():
        decoder.weight.copy_(density.weight)
        decoder.bias.copy_(density.bias)
    vae = VAE(decoder, 2, NormalLikelihood(1.2))
    return density, vae, AVBGuide(vae.model, sampler=ConditionalGaussianSampler(5, (8,)))


def test_an_amortised_guide_gives_each_datum_its_start():
    density, vae, guide = example()
    guide(density.x)
    loc, covariance = guide.part("sampler").moments(density.x)
    start = guide_start(guide, density_of(vae.model, (density.x,), {}), (density.x,), {})
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    # Means of 512 draws, and 1.2 times their covariance, of standard error sqrt(2 / 512).
    assert ((start.loc - loc) / scale).abs().max() < 4.5 / 512**0.5
    reached = (start._factor @ start._factor.mT).diagonal(dim1=-2, dim2=-1) / covariance.diagonal(dim1=-2, dim2=-1)
    assert (reached / 1.2 - 1.0).abs().max() < 4.5 * (2.0 / 512) ** 0.5


def test_the_evidence_from_a_guide_is_exact_and_its_sandwich_closes():
    density, vae, guide = example()
    options = {"guide": guide, "temperatures": SigmoidTemperatures(40), **PLAIN}
    result = annealed_importance_sampling(vae.model, density.x, 1000, chains=20, **options)
    z = (result.log_evidence - density.log_evidence()) / result.stderr
    assert result.stderr.max() < 0.4
    assert z.abs().max() < 5.0
    sandwich = bidirectional_sandwich(vae.model, density.x, **options)
    assert abs(sandwich.gap.value) < 4.0 * sandwich.gap.stderr + 0.1


def test_nothing_of_decoder_or_guide_is_moved():
    density, vae, guide = example()
    guide(density.x)
    modules = (vae.decoder, guide)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in modules]
    annealed_importance_sampling(
        vae.model, density.x, guide=guide, temperatures=SigmoidTemperatures(3), **PLAIN
    )  # fmt: skip
    for module, state in zip(modules, before, strict=True):
        for name, value in module.state_dict().items():
            assert torch.equal(value, state[name]), name
        assert all(p.grad is None for p in module.parameters())


def test_a_guide_to_another_model_is_refused():
    density, _, guide = example()
    other = VAE(nn.Linear(3, 5), 3, NormalLikelihood(1.2), name="other")
    guide(density.x)
    with pytest.raises(ValueError, match=r"guide draws vectors of shape .* 3 unconstrained coordinates"):
        annealed_importance_sampling(other.model, density.x, guide=guide, **PLAIN)
