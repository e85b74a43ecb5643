"""Samplers without density that a user brings: any noise, any width, judged on targets whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import avbvi
from avbvi import AdversarialELBO, AVBGuide, GaussianContrast, LogDensity, ModuleSampler, ResidualAdversary
from avbvi.adversarial import AdversaryTrainer
from avbvi.guides import ADVERSARIAL

MEAN = torch.tensor([1.0, -2.0, 0.5, 30.0])
FACTOR = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.8, 0.6, 0.0, 0.0], [-0.5, 0.5, 0.7, 0.0], [2.0, 1.0, -4.0, 5.0]])
GAUSSIAN = MultivariateNormal(MEAN, scale_tril=FACTOR)


class BitNetwork(nn.Sequential):
    """A network of fair coins."""

    def sample_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        return torch.bernoulli(torch.full((*shape, 6), 0.5, dtype=like.dtype, device=like.device))


class Langevin(nn.Module):
    """Unadjusted Langevin steps towards N(MEAN, FACTOR FACTOR^T); only the sizes of the steps are learned."""

    noise_dim = 5 * 4

    def __init__(self) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.full((4,), -1.0))

    def forward(self, noise: Tensor) -> Tensor:
        x, *kicks = noise.chunk(5, dim=-1)
        for log_step, kick in zip(self.log_step, kicks, strict=True):
            step = log_step.exp()
            score = torch.cholesky_solve((MEAN - x).mT, FACTOR).mT
            x = x + 0.5 * step.square() * score + step * kick
        return x


def network(noise_dim: int, kind: type[nn.Sequential] = nn.Sequential, dropout: float = 0.0) -> nn.Module:
    return kind(nn.Linear(noise_dim, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 4))


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        pytest.param(lambda: ModuleSampler(network(16), 16), 300, id="wide"),
        pytest.param(lambda: ModuleSampler(network(1000), 1000), 300, id="1000-d", marks=pytest.mark.slow),
        pytest.param(lambda: ModuleSampler(network(2), 2), 2000, id="narrow", marks=pytest.mark.slow),
        pytest.param(lambda: network(6, BitNetwork), 2000, id="coins", marks=pytest.mark.slow),
        pytest.param(lambda: ModuleSampler(network(16, dropout=0.3), 16), 300, id="dropout", marks=pytest.mark.slow),
        pytest.param(Langevin, 300, id="Langevin"),
    ],
)
def test_any_sampler_fits_a_gaussian(sampler: Callable[[], nn.Module], steps: int) -> None:
    density = LogDensity(GAUSSIAN.log_prob, event_shape=(4,))
    guide = AVBGuide(density, sampler=sampler())
    elbo = AdversarialELBO(num_particles=256)
    posterior = avbvi.fit(density, guide=guide, steps=steps, seed=1, elbo=elbo, progress=False)
    assert posterior.guide.is_adversarial
    z = posterior.sample(20_000)["z"]
    standard = torch.linalg.solve_triangular(FACTOR, (z - MEAN).mT, upper=False).mT
    # Fixed before the first run: a tenth of a standard deviation, in all directions.
    assert float(standard.mean(0).norm()) < 0.1
    ratios = torch.linalg.eigvalsh(torch.cov(standard.mT)).sqrt()
    assert float(ratios.min()) > 0.9
    assert float(ratios.max()) < 1.1


def learned_log_prob(guide: AVBGuide, z: Tensor) -> Tensor:
    """log q (n,) at z (n, dim) after training the adversary alone.

    The contrast is to have momentum: the noise of one batch's moments would be an error of .06 by itself.
    """
    guide.setup()
    guide.stage.fill_(ADVERSARIAL)
    trainer = AdversaryTrainer(guide, lr=4e-3)
    trainer.begin(guide, batch=512, pretrain_steps=0)
    steps = 600
    for i in range(steps):
        trainer.step(guide, 512, 1.0 - i / steps)
    with torch.no_grad():
        return guide.get_posterior().log_prob(z)


def plain_guide(module: nn.Module, contrast: avbvi.Contrast) -> AVBGuide:
    """A guide whose adversary knows nothing of the target."""
    density = LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(2,))
    return AVBGuide(density, sampler=module, contrast=contrast, adversary=ResidualAdversary(target_hint=False))


def test_the_learned_density_of_wide_noise_is_the_gaussian_that_it_is() -> None:
    module = nn.Linear(12, 2)
    with torch.no_grad():
        module.weight[1] = 0.8 * module.weight[0] + 0.6 * module.weight[1]
    # Taken as it is, z = A n + c, beside a contrast without correlation.
    sampler = ModuleSampler(module, 12, smoothing=0.0, standardise=False)
    exact = MultivariateNormal(module.bias.detach(), module.weight.detach() @ module.weight.detach().mT)
    z = exact.sample((2000,))
    error = learned_log_prob(plain_guide(sampler, GaussianContrast(momentum=0.98)), z) - exact.log_prob(z)
    # Both fixed before the first run. What the adversary has to find, the mutual information, is larger.
    assert float(error.abs().mean()) < 0.1
    assert abs(float(error.mean())) < 0.05
    correlation = exact.covariance_matrix[0, 1] / exact.covariance_matrix.diagonal().prod().sqrt()
    assert float(-0.5 * torch.log1p(-correlation.square())) > 0.15


def test_the_learned_density_of_a_coin_is_the_mixture_that_it_is() -> None:
    class Coin(nn.Module):
        def sample_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
            return torch.randint(2, (*shape, 1), device=like.device)

        def forward(self, noise: Tensor) -> Tensor:
            return rows[noise.squeeze(-1)]

    rows = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    sampler = ModuleSampler(Coin(), standardise=False, smoothing=0.4)
    exact = MixtureSameFamily(
        Categorical(torch.ones(2)), MultivariateNormal(rows, 0.4**2 * torch.eye(2).expand(2, 2, 2))
    )
    z = exact.sample((2000,))
    learned = learned_log_prob(plain_guide(sampler, GaussianContrast(full=True, momentum=0.98)), z)
    error = learned - exact.log_prob(z)
    # Fixed before the first run; between the two points the contrast alone is off by more than 2.
    assert float(error.abs().mean()) < 0.15
    assert abs(float(error.mean())) < 0.05


def test_behind_which_trunk_a_sampler_stands() -> None:
    density = LogDensity(GAUSSIAN.log_prob, event_shape=(4,))
    kinds = {
        type(AVBGuide(density, sampler=sampler, trunk=trunk).part("trunk")).__name__
        for sampler, trunk in ((Langevin(), None), (avbvi.MLPSampler(), None), (None, avbvi.AffineTrunk()))
    }
    assert kinds == {"AffineTrunk"}
    for sampler, trunk in ((None, None), (avbvi.ResidualSampler(), None), (Langevin(), avbvi.BestTrunk())):
        assert type(AVBGuide(density, sampler=sampler, trunk=trunk).part("trunk")) is avbvi.BestTrunk


def test_a_saved_fit_gives_the_same_draws(tmp_path: Path) -> None:
    density = LogDensity(GAUSSIAN.log_prob, event_shape=(4,))
    module = network(6, BitNetwork)
    posterior = avbvi.fit(density, guide=AVBGuide(density, sampler=module), steps=20, seed=1, progress=False)
    posterior.save(tmp_path / "fit.pt")
    other = AVBGuide(density, sampler=network(6, BitNetwork))
    loaded = avbvi.load(tmp_path / "fit.pt", density, guide=other)
    torch.manual_seed(5)
    expected = posterior.sample(50)["z"]
    torch.manual_seed(5)
    torch.testing.assert_close(loaded.sample(50)["z"], expected)
