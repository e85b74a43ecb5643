"""The verdict on an amortised fit: made cases that must raise an alarm, and made cases that must not."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from avbvi import AmortisedPosterior, AVBGuide, Estimate, PriorContrast, Verdict
from avbvi.amortised.adversaries import ConditionalAdversary
from avbvi.amortised.contrasts import ConditionalGaussianContrast
from avbvi.amortised.samplers import AmortisedSampler
from avbvi.amortised.verdict import judge
from avbvi.runs import Run

from .known import LinearGaussian, LinearSampler, Oracle, exact_guide

N = 24


class Silent(ConditionalAdversary):
    """Sees nothing."""

    def _build(self, dim: int) -> None:
        self.idle = nn.Parameter(torch.zeros(()))

    def network_output(self, features: Tensor, context: Tensor) -> Tensor:
        return 0.0 * features.sum(-1) + 0.0 * self.idle


class Distorted(Oracle):
    """Knows the truth and says something else of it: scale * T + shift."""

    def __init__(self, sampler: LinearSampler, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__(sampler)
        self.scale, self.shift = scale, shift

    def forward(self, features: Tensor, context: Tensor, log_prior: Tensor | None = None) -> Tensor:
        return self.scale * super().forward(features, context, log_prior) + self.shift


class Ring(AmortisedSampler):
    """Draws on a ring of radius 1 and sd .1 for every datum: its moments are those of N(0, .505 I)."""

    noise_dim = 2

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        angle = math.pi * torch.special.erf(noise[..., 0] / math.sqrt(2.0))
        radius = 1.0 + 0.1 * noise[..., 1]
        return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)


class Bernoulli(LinearGaussian):
    def datum(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(self.dim), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


def linear(
    known: LinearGaussian, x: Tensor, *, contrast: Any = None, adversary: Any = None, perfect: bool = True
) -> AmortisedPosterior:
    """A posterior with a linear sampler, by default the exact one; the adversary is a function of the sampler."""
    sampler = LinearSampler(known.width)
    made = Oracle(sampler) if adversary is None else adversary(sampler)
    guide = AVBGuide(known.model, sampler=sampler, contrast=contrast or PriorContrast(), adversary=made)
    guide.setup(x)
    if perfect:
        w, b = known.decoder.weight.detach(), known.decoder.bias.detach()
        _, covariance = known.posterior(torch.zeros(1, known.width))
        with torch.no_grad():
            sampler.a.copy_(covariance @ w.mT / known.scale**2)
            sampler.c.copy_(-sampler.a @ b)
            sampler.l.copy_(torch.linalg.cholesky(covariance))
    return AmortisedPosterior(known.model, guide, (x,), {}, verdict=Verdict("ok", []), run=Run(steps=100))


def says(verdict: Verdict, words: str) -> bool:
    return any(words in reason for reason in verdict.reasons)


def annealed(log_evidence: Tensor, stderr: float = 0.01) -> Any:
    """What annealed importance sampling returns, as far as a verdict looks at it."""
    return SimpleNamespace(log_evidence=log_evidence, mean=Estimate(float(log_evidence.mean()), stderr))


# -- what must not raise an alarm -----------------------------------------------------------------------


def test_an_exact_guide_is_ok() -> None:
    known = LinearGaussian()
    x = known.data(N)
    verdict = linear(known, x).judge(ais=annealed(known.log_evidence(x)))
    assert verdict.status == "ok", str(verdict)
    assert verdict.figures["elbo"] == pytest.approx(float(known.log_evidence(x).mean()), abs=1e-4)
    assert abs(verdict.figures["gap"]) < 1e-3
    assert verdict.figures["active_units"] == 2.0
    assert says(verdict, "annealed importance sampling")
    assert "missed" not in str(verdict.reasons)


@pytest.mark.parametrize("contrast", [True, False])
def test_a_rough_but_honest_guide_is_ok(contrast: bool) -> None:
    """Not the posterior, but the adversary knows its density: the ELBO is low and no alarm is due."""
    known = LinearGaussian()
    x = known.data(N)
    posterior = linear(known, x, perfect=False)
    if contrast:  # a full contrast has q's own moments, and there is nothing left to say
        posterior = linear(
            known, x, perfect=False, contrast=ConditionalGaussianContrast(draws=4000), adversary=lambda s: Silent()
        )
    verdict = posterior.judge(ais=annealed(known.log_evidence(x)))
    assert verdict.status == "ok", str(verdict)
    assert verdict.figures["gap"] > 0.5


def test_false_alarms() -> None:
    known = LinearGaussian()
    for i in range(12):
        pyro.set_rng_seed(100 + i)
        x = known.data(6)
        assert linear(known, x).judge(n=50, ais=annealed(known.log_evidence(x))).status == "ok"


def test_a_continuous_likelihood_may_be_above_zero() -> None:
    known = LinearGaussian(scale=1e-3)
    x = known.data(N)
    verdict = linear(known, x).judge()
    assert verdict.figures["elbo"] > 0.0
    assert "data_above_zero" not in verdict.figures
    assert not says(verdict, "impossible")


# -- what must ------------------------------------------------------------------------------------------


def correlate(posterior: AmortisedPosterior, strength: float) -> AmortisedPosterior:
    dim = posterior.guide.plate_layout.dim  # type: ignore[union-attr]
    with torch.no_grad():
        posterior.guide.part("sampler").l.copy_(torch.eye(dim) + strength * torch.ones(dim, dim).tril(-1))
    return posterior


@pytest.mark.parametrize(("strength", "status"), [(0.0, "ok"), (0.7, "suspect"), (20.0, "failed")])
def test_moments_that_the_adversary_does_not_see(strength: float, status: str) -> None:
    """The paper's diagonal contrast: -1/2 log det corr(q) is named, in nats."""
    known = LinearGaussian()
    diagonal = ConditionalGaussianContrast(full=False, draws=4000)
    posterior = linear(known, known.data(N), contrast=diagonal, adversary=lambda s: Silent(), perfect=False)
    verdict = correlate(posterior, strength).judge()
    truth = 0.5 * torch.tensor(1.0 + strength**2).log()  # 1 / (1 - corr^2) = 1 + strength^2
    assert verdict.figures["missed_nats"] == pytest.approx(float(truth), abs=0.03)
    assert says(verdict, f"the adversary misses at least {verdict.figures['missed_nats']:.3g} nats") == (strength > 0)
    assert verdict.status == status, str(verdict)


@pytest.mark.parametrize("n", [N, 400])
def test_what_neighbours_see_and_moments_do_not(n: int) -> None:
    known = LinearGaussian()
    x = known.data(n)
    guide = AVBGuide(known.model, sampler=Ring(3), contrast=ConditionalGaussianContrast(), adversary=Silent())
    guide.setup(x)
    found = AmortisedPosterior(known.model, guide, (x,), {}, verdict=Verdict("ok", []), run=Run(steps=100)).judge()
    assert abs(found.figures["missed_nats"]) < 0.05  # r has q's moments
    assert says(found, "nearest neighbours")
    assert found.status == "suspect"
    # -E_q[log r] - H(q), the entropy of the ring in polar coordinates; E[log radius] = -.1^2 / 2 to second order.
    entropy = math.log(2.0 * math.pi) - 0.005 + 0.5 * math.log(2.0 * math.pi * math.e * 0.01)
    exact = math.log(2.0 * math.pi * 0.505) + 1.0 - entropy
    assert found.figures["entropy_excess"] == pytest.approx(exact, abs=0.05)


def test_neighbours_are_not_asked_in_many_dimensions() -> None:
    known = LinearGaussian(5, 4)
    found = linear(known, known.data(N)).judge()
    assert found.status == "ok"
    assert "entropy_excess" not in found.figures


@pytest.mark.parametrize(
    ("scale", "status", "words"),
    [
        (1.0, "ok", "the adversary holds on fresh draws"),
        (3.0, "ok", "the learned log q is rough"),  # it says too much, and the ELBO's estimate is too low
        (0.2, "suspect", "misses at least"),
        (-1.0, "suspect", "the adversary is miscalibrated"),
    ],
)
def test_an_adversary_that_is_not_calibrated(scale: float, status: str, words: str) -> None:
    known = LinearGaussian()
    verdict = linear(known, known.data(N), adversary=lambda s: Distorted(s, scale)).judge()
    assert verdict.status in (status, "failed") if status != "ok" else verdict.status == "ok", str(verdict)
    assert says(verdict, words)


def test_an_elbo_above_the_log_likelihood() -> None:
    known = LinearGaussian()
    x = known.data(N)
    posterior = linear(known, x)
    truth = known.log_evidence(x)
    verdict = posterior.judge(ais=annealed(truth - 0.3))
    assert verdict.status == "suspect"
    assert says(verdict, "0.3 nats per datum above the log-likelihood")
    assert posterior.judge(ais=annealed(truth - 0.3, stderr=0.5)).status == "ok"  # within its errors
    assert posterior.judge(ais=annealed(truth + 0.3)).status == "ok"


def test_an_elbo_that_no_discrete_data_can_have() -> None:
    known = Bernoulli()
    x = (torch.rand(N, 3) < 0.5).float()
    honest = linear(known, x, perfect=False).judge()
    assert honest.figures["data_above_zero"] == 0.0
    assert not says(honest, "impossible")
    verdict = linear(known, x, perfect=False, adversary=lambda s: Distorted(s, shift=-50.0)).judge()
    assert verdict.status == "failed"
    assert says(verdict, f"positive for {N} of {N} data")


@pytest.mark.parametrize(("shift", "impossible"), [(0.0, False), (-50.0, True)])
def test_few_draws_of_many_data_are_judged_together(shift: float, impossible: bool) -> None:
    known = Bernoulli()
    x = (torch.rand(60_000, 3) < 0.5).float()
    verdict = linear(known, x, perfect=False, adversary=lambda s: Distorted(s, shift=shift)).judge()
    assert says(verdict, "positive on average") == impossible
    assert verdict.figures["data_above_zero"] == (60_000.0 if impossible else 0.0)


@pytest.mark.parametrize("collapsed", [1, 2])
def test_posterior_collapse(collapsed: int) -> None:
    known = LinearGaussian()
    posterior = linear(known, known.data(N))
    with torch.no_grad():
        posterior.guide.part("sampler").a[:collapsed] = 0.0
    verdict = posterior.judge()
    assert verdict.figures["active_units"] == 2.0 - collapsed
    assert verdict.status == ("ok" if collapsed == 1 else "suspect")
    whole, part = "the same for all data", "posterior collapse of 1 of 2 latent coordinates"
    assert says(verdict, whole if collapsed == 2 else part)


def test_draws_that_are_not_finite() -> None:
    known = LinearGaussian()
    posterior = linear(known, known.data(N))
    with torch.no_grad():
        posterior.guide.part("sampler").c[0] = torch.nan
    verdict = posterior.judge()
    assert verdict.status == "failed"
    assert verdict.figures["finite_share"] == 0.0


@pytest.mark.parametrize(
    ("skipped", "steps", "status", "words"),
    [(0, 100, "ok", ""), (10, 100, "suspect", "10 of 100 steps were skipped"), (0, 0, "failed", "no training step")],
)
def test_the_run(skipped: int, steps: int, status: str, words: str) -> None:
    known = LinearGaussian()
    x = known.data(N)
    guide = linear(known, x).guide
    verdict = judge(guide, known.model, guide.minibatch(x), skipped=skipped, steps=steps)
    assert verdict.status == status, str(verdict)
    assert says(verdict, words)


def test_refusals() -> None:
    known = LinearGaussian()
    posterior = linear(known, known.data(N))
    with pytest.raises(ValueError, match=r"ais must be about the same data.*shape \(3,\), the data are 24"):
        posterior.judge(ais=annealed(torch.zeros(3)))
    with pytest.raises(TypeError, match=r"ais must be what avbvi\.annealed_importance_sampling returns, found float"):
        posterior.judge(ais=-83.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n must be at least 2"):
        posterior.judge(n=1)
    assert exact_guide(known.model, 3).is_amortised
