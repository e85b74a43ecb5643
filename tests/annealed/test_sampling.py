"""Annealed importance sampling against exact evidences, through Pyro and without it; files, parts and refusals."""

from __future__ import annotations

import math
from contextlib import suppress

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor, nn

import avbvi
from avbvi import CheckpointError, ModelError
from avbvi.annealed import (
    GaussianStart,
    LinearTemperatures,
    SigmoidTemperatures,
    annealed_importance_sampling,
    bidirectional_sandwich,
    saved,
)
from models import conjugate_normal, eight_schools
from tests.annealed.known import LinearGaussian

PLAIN = {"progress": False, "seed": 0}


def plated(density: LinearGaussian):
    """The same model in Pyro, of data x (B, pixels)."""

    def model(x: Tensor, size: int | None = None) -> None:
        with pyro.plate("data", len(x) if size is None else size, subsample=torch.arange(len(x)), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(density.dim), 1.0).to_event(1))
            mean = z @ density.weight.mT + density.bias
            pyro.sample("x", dist.Normal(mean, density.noise).to_event(1), obs=x)

    return model


def gaussian_start(density: LinearGaussian):
    """A start from the data: the exact posterior, moved by .4 standard deviations and widened."""

    def start(x: Tensor, size: int | None = None) -> GaussianStart:
        loc, covariance = LinearGaussian(x, density.weight, density.bias, density.noise).posterior()
        scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        return GaussianStart((loc + 0.4 * scale).float(), covariance.float(), inflation=1.5)

    return start


def errors(result, density: LinearGaussian) -> Tensor:
    """Errors of the log-evidence by datum, in standard errors."""
    return (result.log_evidence - density.log_evidence()) / result.stderr


# -- exact evidences ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LinearTemperatures(100), SigmoidTemperatures(60)], ids=["linear", "sigmoid"])
@pytest.mark.parametrize("start", ["prior", "gaussian"])
def test_linear_gaussian_evidence(schedule, start):
    density = LinearGaussian.simulated(30, 5, 2, noise=0.7)
    begin = None if start == "prior" else gaussian_start(density)(density.x)
    result = annealed_importance_sampling(
        density, start=begin, temperatures=schedule, chains=20, leapfrog_steps=5, **PLAIN
    )
    z = errors(result, density)
    assert result.stderr.max() < 0.8
    # 30 of Student's t with some 19 degrees of freedom.
    assert z.abs().max() < 5.0
    assert abs(result.mean.value - float(density.log_evidence().mean())) < 4.0 * result.mean.stderr
    assert result.log_weights.dtype == torch.float64
    assert result.acceptance.shape == (schedule.count,)


def test_a_start_near_the_posterior_needs_far_fewer_temperatures():
    density = LinearGaussian.simulated(10, 40, 10)
    spread = {}
    for name, begin, count in (("prior", None, 100), ("gaussian", gaussian_start(density)(density.x), 10)):
        result = annealed_importance_sampling(
            density, start=begin, temperatures=SigmoidTemperatures(count), chains=10, leapfrog_steps=4, **PLAIN
        )
        spread[name] = float(result.log_weights.var(0).mean())
    assert spread["gaussian"] < 0.2 * spread["prior"]


def test_the_sandwich_closes_and_holds_the_exact_evidence():
    density = LinearGaussian.simulated(60, 4, 2, noise=1.0)
    result = bidirectional_sandwich(density, temperatures=SigmoidTemperatures(60), chains=10, **PLAIN)
    # What was simulated inside is simulated again, from the same seed.
    simulated = _simulated(density)
    exact = simulated.log_evidence()
    lower, upper = result.lower - exact, result.upper - exact
    for bound in (lower, upper):
        assert float(bound.abs().mean()) < 0.3
    # In expectation the lower bound lies below and the upper above: neither by more than its error beyond.
    assert float(lower.mean()) < 4.0 * float(lower.std()) / math.sqrt(60)
    assert float(upper.mean()) > -4.0 * float(upper.std()) / math.sqrt(60)
    assert abs(result.gap.value) < 0.2
    short = bidirectional_sandwich(density, temperatures=SigmoidTemperatures(6), chains=1, **PLAIN)
    assert short.gap.value > result.gap.value + 0.2


def _simulated(density: LinearGaussian) -> LinearGaussian:
    from avbvi.rng import seeded

    seeds = torch.randint(2**31, (1, 2), generator=torch.Generator().manual_seed(0)).tolist()
    with seeded(seeds[0][0]):
        return density.simulate()[1]


def test_eight_schools_as_one_datum():
    result = annealed_importance_sampling(
        eight_schools.model, temperatures=SigmoidTemperatures(40), chains=100, leapfrog_steps=4, **PLAIN
    )
    assert result.log_evidence.shape == (1,)
    assert float(result.stderr) < 0.3
    assert abs(float(result.log_evidence) - eight_schools.exact_log_evidence()) < 4.0 * float(result.stderr)
    assert result.total == result.mean


def test_log_density_needs_a_start():
    target = avbvi.LogDensity(lambda z: -0.5 * z.square().sum(-1), (2,))
    with pytest.raises(ModelError, match=r"no prior.*GaussianStart"):
        annealed_importance_sampling(target, **PLAIN)
    result = annealed_importance_sampling(
        target, start=GaussianStart(torch.ones(1, 2), 2.0 * torch.ones(1, 2)),
        temperatures=LinearTemperatures(20), chains=50, leapfrog_steps=3, **PLAIN,
    )  # fmt: skip
    assert abs(float(result.log_evidence) - math.log(2.0 * math.pi)) < 4.0 * float(result.stderr)


def test_a_fitted_guide_gives_the_start():
    guide = AutoMultivariateNormal(conjugate_normal.model)
    guide(conjugate_normal.Y)
    mean, covariance = conjugate_normal.exact_moments()
    scale = covariance.diagonal().sqrt()
    # The guide's covariance is diag(scale) L L^T diag(scale) with unit-diagonal L.
    factor = torch.linalg.cholesky(covariance)
    with torch.no_grad():
        guide.loc.copy_(mean.float())
        guide.scale = factor.diagonal().float()
        guide.scale_tril = (factor / factor.diagonal()[:, None]).float()
    result = annealed_importance_sampling(
        conjugate_normal.model, conjugate_normal.Y, guide=guide, temperatures=SigmoidTemperatures(15), chains=50,
        leapfrog_steps=3, **PLAIN,
    )  # fmt: skip
    prior, noise = conjugate_normal.PRIOR_COVARIANCE.double(), conjugate_normal.NOISE_COVARIANCE.double()
    y = conjugate_normal.Y.double()
    joint = torch.kron(torch.ones(2, 2).double(), prior) + torch.block_diag(noise, noise)
    exact = torch.distributions.MultivariateNormal(torch.zeros(6).double(), joint).log_prob(y.flatten())
    assert float(result.stderr) < 0.05
    assert abs(float(result.log_evidence - exact)) < 4.0 * float(result.stderr)
    assert scale.shape == (3,)


# -- Pyro models with a plate over data -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 500])
def test_plated_models_have_an_evidence_by_datum(size):
    density = LinearGaussian.simulated(12, 5, 2, noise=0.7)
    result = annealed_importance_sampling(
        plated(density), density.x, size, start=gaussian_start(density), temperatures=SigmoidTemperatures(20),
        chains=20, leapfrog_steps=4, **PLAIN,
    )  # fmt: skip
    assert result.log_evidence.shape == (12,)
    assert errors(result, density).abs().max() < 5.0
    assert result.stderr.max() < 0.2


def test_plated_models_start_from_their_prior():
    density = LinearGaussian.simulated(10, 4, 2, noise=0.8)
    result = annealed_importance_sampling(
        plated(density), density.x, temperatures=SigmoidTemperatures(40), chains=20, leapfrog_steps=5, **PLAIN
    )
    assert errors(result, density).abs().max() < 5.0


def test_sandwich_of_a_plated_model_with_a_start_from_the_simulated_data():
    density = LinearGaussian.simulated(20, 4, 2, noise=0.8)
    result = bidirectional_sandwich(
        plated(density), density.x, start=gaussian_start(density), temperatures=SigmoidTemperatures(20), chains=5,
        leapfrog_steps=4, **PLAIN,
    )  # fmt: skip
    # A start for other data than the simulated ones would lie many standard deviations off.
    assert abs(result.gap.value) < 0.1
    # The mean log-evidence of simulated data is minus their entropy.
    weight = density.weight.double()
    covariance = weight @ weight.mT + 0.64 * torch.eye(4).double()
    normal = torch.distributions.MultivariateNormal(density.bias.double(), covariance)
    # log p(x) of a 4-d Gaussian has variance 2.
    assert abs(result.mean_lower.value + float(normal.entropy())) < 4.0 * math.sqrt(2.0 / 20)


def test_parts_have_the_evidence_of_their_own_data():
    density = LinearGaussian.simulated(10, 5, 2, noise=0.7)
    options = {"start": gaussian_start(density), "temperatures": SigmoidTemperatures(10), "chains": 20,
               "leapfrog_steps": 3, **PLAIN}  # fmt: skip
    result = annealed_importance_sampling(plated(density), density.x, batch_size=4, **options)
    assert result.log_evidence.shape == (10,)
    assert errors(result, density).abs().max() < 5.0
    assert result.draws.shape == (20, 10, 2)
    # The first part is that of a run on its data alone: no other part has a say in it.
    alone = annealed_importance_sampling(plated(density), density.x[:4], **options)
    assert torch.equal(alone.log_weights, result.log_weights[:, :4])
    # A start for all data is cut along with them.
    whole = gaussian_start(density)(density.x)
    cut = annealed_importance_sampling(plated(density), density.x, batch_size=4, **{**options, "start": whole})
    torch.testing.assert_close(cut.log_weights, result.log_weights, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batch_size", [32, 50, 64, 70])
def test_figures_do_not_depend_on_how_the_data_are_cut(batch_size):
    density = LinearGaussian.simulated(75, 5, 2, noise=0.7)
    options = {"start": gaussian_start(density), "temperatures": SigmoidTemperatures(10), "chains": 4,
               "leapfrog_steps": 3, **PLAIN}  # fmt: skip
    whole = annealed_importance_sampling(plated(density), density.x, **options)
    cut = annealed_importance_sampling(plated(density), density.x, batch_size=batch_size, chains_at_once=3, **options)
    # To the rounding of products of other shapes: noise and step sizes are the same.
    torch.testing.assert_close(cut.log_weights, whole.log_weights, rtol=0.0, atol=1e-3)
    torch.testing.assert_close(cut.draws, whole.draws, rtol=0.0, atol=1e-3)


def test_part_of_the_data_alone_has_the_figures_of_all():
    # As for processes that share the data among them.
    density = LinearGaussian.simulated(80, 5, 2, noise=0.7)
    options = {"start": gaussian_start(density), "temperatures": SigmoidTemperatures(10), "chains": 4,
               "leapfrog_steps": 3, **PLAIN}  # fmt: skip
    whole = annealed_importance_sampling(plated(density), density.x, **options)
    parts = [
        annealed_importance_sampling(plated(density), density.x[i:j], first_datum=i, **options)
        for i, j in ((0, 32), (32, 64), (64, 80))  # fewer than 32 at the end, as there are in all
    ]
    torch.testing.assert_close(
        torch.cat([part.log_weights for part in parts], 1), whole.log_weights, rtol=0.0, atol=1e-3
    )
    # By default other data in the same places have the same noise, so that the number of the first one matters.
    alike = annealed_importance_sampling(plated(density), density.x[32:], **options)
    assert not torch.allclose(alike.log_weights, torch.cat([p.log_weights for p in parts[1:]], 1), atol=1e-2)


# -- randomness -------------------------------------------------------------------------------------------------


def quick(model, *args, **options):
    return annealed_importance_sampling(
        model, *args, **{"temperatures": SigmoidTemperatures(10), "leapfrog_steps": 2, "progress": False, **options}
    )


def test_seeds_repeat_a_run_and_leave_the_callers_generator_alone():
    density = LinearGaussian.simulated(6, 4, 2)
    state = torch.get_rng_state()
    first, again, other = (quick(density, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.log_weights, again.log_weights)
    assert not torch.equal(first.log_weights, other.log_weights)
    torch.manual_seed(5)
    unseeded = quick(density)
    assert not torch.equal(unseeded.log_weights, quick(density).log_weights)
    torch.manual_seed(5)
    assert torch.equal(unseeded.log_weights, quick(density).log_weights)


class Dropping(LinearGaussian):
    """A decoder with dropout left on."""

    def log_joint(self, z: Tensor) -> Tensor:
        return super().log_joint(nn.functional.dropout(z, 0.5))


def test_other_randomness_of_a_model_is_frozen():
    plain = LinearGaussian.simulated(6, 4, 2)
    density = Dropping(plain.x, plain.weight, plain.bias, plain.noise)
    z = torch.randn(3, 6, 2)
    assert not torch.equal(density.log_joint(z), density.log_joint(z))
    result = quick(density, seed=0, temperatures=SigmoidTemperatures(40), leapfrog_steps=4)
    # With noise drawn anew at each evaluation no energy would be conserved.
    assert float(result.acceptance[10:].mean()) > 0.4
    with pytest.raises(ModelError, match="random besides its latents"):
        bidirectional_sandwich(density, temperatures=SigmoidTemperatures(3), **PLAIN)


# -- files ------------------------------------------------------------------------------------------------------


class Interrupted:
    """A density that is interrupted at its n-th evaluation."""

    def __init__(self, density: LinearGaussian, n: int) -> None:
        self.density, self.left = density, n
        self.batch, self.dim = density.batch, density.dim
        self.log_prior, self.sample_prior = density.log_prior, density.sample_prior

    def log_joint(self, z: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.density.log_joint(z)

    def simulate(self):
        z, density = self.density.simulate()
        return z, Interrupted(density, self.left)


@pytest.mark.parametrize("run", [annealed_importance_sampling, bidirectional_sandwich])
@pytest.mark.parametrize("after", [3, 30, 70])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, monkeypatch, run, after):
    monkeypatch.setattr(saved, "SAVE_EVERY", 0.0)
    density = LinearGaussian.simulated(4, 4, 2)
    options = {"temperatures": SigmoidTemperatures(10), "leapfrog_steps": 2, "chains": 3, **PLAIN}
    whole = run(density, **options)
    file = tmp_path / "run.pt"
    # A forward run may have ended before.
    with suppress(KeyboardInterrupt):
        run(Interrupted(density, after), checkpoint=file, **options)
    assert file.exists() == (after > 3)
    resumed = run(density, checkpoint=file, **options)
    finished = run(density, checkpoint=file, **options)
    for result in (resumed, finished):
        for a, b in ((result, whole), (getattr(result, "forward", result), getattr(whole, "forward", whole))):
            for name in ("log_weights", "backward_log_weights", "draws", "acceptance"):
                if hasattr(a, name):
                    assert torch.equal(getattr(a, name), getattr(b, name))


def test_parts_resume_between_and_within(tmp_path, monkeypatch):
    monkeypatch.setattr(saved, "SAVE_EVERY", 0.0)
    density = LinearGaussian.simulated(6, 4, 2)
    calls = 0

    def start(x: Tensor) -> GaussianStart:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return gaussian_start(density)(x)

    options = {"temperatures": SigmoidTemperatures(5), "leapfrog_steps": 1, "batch_size": 2, "start": start, **PLAIN}
    stop = -1
    whole = annealed_importance_sampling(plated(density), density.x, **options)
    assert calls == 3
    calls, stop = 0, 3
    with pytest.raises(KeyboardInterrupt):
        annealed_importance_sampling(plated(density), density.x, checkpoint=tmp_path / "run.pt", **options)
    calls, stop = 0, -1
    resumed = annealed_importance_sampling(plated(density), density.x, checkpoint=tmp_path / "run.pt", **options)
    assert calls == 2  # the last one done, to see whether it is the same model, and the one that was left
    assert torch.equal(resumed.log_weights, whole.log_weights)


def test_ctrl_c_saves_first(tmp_path, default_sigint):
    import signal

    class Pressed(LinearGaussian):
        left = 25

        def log_joint(self, z):
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
            return super().log_joint(z)

    density = LinearGaussian.simulated(4, 4, 2)
    whole = quick(density, seed=0)
    density.__class__ = Pressed
    with pytest.raises(KeyboardInterrupt):
        quick(density, seed=0, checkpoint=tmp_path / "run.pt")
    assert (tmp_path / "run.pt").exists()
    density.__class__ = LinearGaussian
    assert torch.equal(quick(density, checkpoint=tmp_path / "run.pt").log_weights, whole.log_weights)


def test_a_file_of_another_run_is_refused(tmp_path):
    density, file = LinearGaussian.simulated(4, 4, 2), tmp_path / "run.pt"
    quick(density, seed=0, checkpoint=file)
    with pytest.raises(CheckpointError, match="another seed"):
        quick(density, seed=1, checkpoint=file)
    with pytest.raises(CheckpointError, match="another chains"):
        quick(density, seed=0, chains=7, checkpoint=file)
    with pytest.raises(CheckpointError, match="another temperatures"):
        quick(density, seed=0, temperatures=SigmoidTemperatures(11), checkpoint=file)
    with pytest.raises(CheckpointError, match="another kind"):
        bidirectional_sandwich(
            density, temperatures=SigmoidTemperatures(10), leapfrog_steps=2, checkpoint=file, **PLAIN
        )
    with pytest.raises(CheckpointError, match="another model or other data"):
        quick(LinearGaussian.simulated(4, 4, 2, seed=1), seed=0, checkpoint=file)
    with pytest.raises(CheckpointError, match="another model or other data"):
        quick(LinearGaussian.simulated(5, 4, 2), seed=0, checkpoint=file)
    file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged"):
        quick(density, seed=0, checkpoint=file)


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"temperatures": 1000}, TypeError, "temperatures must be a schedule"),
        ({"chains": 0}, ValueError, "chains must be at least 1"),
        ({"chains": 2.0}, TypeError, "chains must be an integer"),
        ({"leapfrog_steps": 0}, ValueError, "leapfrog_steps"),
        ({"target_acceptance": 1.0}, ValueError, "target_acceptance must lie between"),
        ({"target_acceptance": "high"}, TypeError, "target_acceptance"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"chains_at_once": 0}, ValueError, "chains_at_once must be at least 1"),
        ({"first_datum": -1}, ValueError, "first_datum"),
        ({"seed": -1}, ValueError, "seed"),
        ({"device": "abacus"}, ValueError, "device"),
        ({"progress": 1}, TypeError, "progress"),
        ({"vectorize": "no"}, TypeError, "vectorize"),
        ({"model_kwargs": [1]}, TypeError, "model_kwargs"),
        ({"checkpoint": "/nowhere/run.pt"}, FileNotFoundError, "checkpoint"),
        ({"start": 3}, TypeError, "start must be callable"),
        ({"start": lambda x: None}, TypeError, "start must be a function that returns"),
        ({"guide": object()}, TypeError, "guide must be an AVBGuide"),
        ({"guide": object(), "start": lambda x: None}, ValueError, "start or guide"),
    ],
)
def test_bad_arguments(options, error, words):
    density = LinearGaussian.simulated(4, 4, 2)
    with pytest.raises(error, match=words):
        annealed_importance_sampling(plated(density), density.x, **{"progress": False, **options})


def test_starts_and_guides_of_other_data():
    density = LinearGaussian.simulated(4, 4, 2)
    with pytest.raises(ValueError, match="start holds 3 data with 2 coordinates"):
        quick(density, start=GaussianStart(torch.zeros(3, 2), torch.ones(3, 2)))
    guide = AutoMultivariateNormal(conjugate_normal.model)
    guide(conjugate_normal.Y)
    with pytest.raises(ValueError, match="guide draws vectors of shape"):
        quick(eight_schools.model, guide=guide)


def test_densities_with_data_take_no_arguments():
    density = LinearGaussian.simulated(4, 4, 2)
    with pytest.raises(ValueError, match="no further arguments"):
        quick(density, density.x)
    with pytest.raises(ValueError, match="batch_size can't cut"):
        quick(density, batch_size=2)
    with pytest.raises(TypeError, match="model must be callable"):
        quick(3)


def test_batch_size_needs_rows_of_data():
    with pytest.raises(ValueError, match="there is none"):
        quick(eight_schools.model, batch_size=2)
    with pytest.raises(ValueError, match="of 2 rows of the arguments the model makes 1 data"):
        quick(eight_schools.model, *eight_schools.paper_data(), batch_size=2)
