"""Mistakes are answered by an exception that names the site or argument and the remedy."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints

import avbvi
from avbvi import AdversarialELBO, AffineTrunk, AVBGuide, LogDensity, ModelError


def step(model: Any, guide: Any = None, *args: Any, **options: Any) -> float:
    elbo = AdversarialELBO(**({"num_particles": 8, "pretrain_steps": 0} | options))
    loss: float = SVI(model, guide or AVBGuide(model), elbo.optimizer(), loss=elbo).step(*args)
    return loss


def placed(model: Any) -> AVBGuide:
    """A guide whose trunk counts as placed, to spare the search for a start."""
    guide = AVBGuide(model, trunk=AffineTrunk()).setup()
    guide.started.fill_(True)
    return guide


# -- models ------------------------------------------------------------------------------------------


def with_discrete() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Bernoulli(0.3))
    pyro.sample("y", dist.Normal(x + k, 1.0), obs=torch.tensor(0.2))


def test_discrete_latent_is_named_with_both_remedies() -> None:
    with pytest.raises(ModelError, match=r"site 'k' is a discrete latent.*config_enumerate.*hide it.*hide=\['k'\]"):
        AVBGuide(with_discrete).setup()


def test_enumerated_discrete_latent_needs_an_enumerating_elbo_only() -> None:
    model = pyro.infer.config_enumerate(with_discrete)
    inner = TraceEnum_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=0)
    assert math.isfinite(step(model, None, elbo=inner, num_particles=None))


def test_hidden_discrete_latent_is_missed_in_training() -> None:
    guide = AVBGuide(poutine.block(with_discrete, hide=["k"]), trunk=AffineTrunk())
    assert guide().keys() >= {"x"}
    with pytest.raises(ModelError, match=r"latent sites \['k'\] are not covered.*config_enumerate.*AutoGuideList"):
        step(with_discrete, guide)


def test_model_without_latents() -> None:
    def model() -> None:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.2))

    with pytest.raises(ModelError, match="no continuous latent sites"):
        AVBGuide(model).setup()


def test_model_with_discrete_latents_only() -> None:
    def model() -> None:
        pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})

    with pytest.raises(ModelError, match="no continuous latent sites"):
        AVBGuide(model).setup()


def test_latents_that_come_and_go() -> None:
    # Four possibilities: the odds of never seeing a change in three runs are those of the seed, which is fixed.
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if x > 0:
            pyro.sample("sometimes", dist.Normal(0.0, 1.0))

    with pytest.raises(ModelError, match=r"change from run to run \(dynamic structure\): \['sometimes'\]"):
        AVBGuide(model).setup()


def test_latents_that_change_shape() -> None:
    size = iter([2, 3, 2, 3, 2, 3])

    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(next(size)), 1.0).to_event(1))

    with pytest.raises(ModelError, match=r"dynamic structure\): \['x'\].*same shapes"):
        AVBGuide(model).setup()


def test_latents_in_a_subsampled_plate() -> None:
    def model() -> None:
        with pyro.plate("data", 10, subsample_size=4):
            pyro.sample("local", dist.Normal(0.0, 1.0))

    with pytest.raises(ModelError, match=r"site 'local' lies in plate 'data', which subsamples 4 of 10.*whole plate"):
        AVBGuide(model).setup()


def test_model_that_fails_inside_an_outer_plate_names_its_last_site() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        a, b, c = x  # the first dimension is that of the draws
        pyro.sample("y", dist.Normal(a * b + c, 1.0), obs=torch.tensor(0.2))

    with pytest.raises(ModelError, match=r"(?s)last site reached: 'x'.*vectorize_particles=False"):
        step(model)
    assert math.isfinite(step(model, placed(model), vectorize_particles=False))


def test_model_that_broadcasts_draws_against_draws_names_the_site() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 4):
            # One dimension too many: draws end up on the left of their plate.
            pyro.sample("y", dist.Normal(x.unsqueeze(-2).sum(-1), 1.0), obs=torch.zeros(4))

    with pytest.raises(ModelError, match=r"site 'y' has log-density of shape \(32, 32, 4\).*vectorize_particles=False"):
        step(model)
    assert math.isfinite(step(model, placed(model), vectorize_particles=False))


# -- log-densities ------------------------------------------------------------------------------------


def constant(value: float) -> LogDensity:
    return LogDensity(lambda z: 0.0 * z.sum(-1) + value, (2,))


@pytest.mark.filterwarnings("ignore:Encountered:UserWarning")  # Pyro's own, which do not say where
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"log-density is NaN at a starting point.*must be finite, or -inf outside"),
        (math.inf, r"log-density is \+inf at a starting point.*must be finite, or -inf outside"),
        (-math.inf, r"log-density is -inf at all starting points; give LogDensity\(init=\.\.\.\)"),
    ],
)
def test_log_density_without_finite_values(value: float, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        step(constant(value))


@pytest.mark.parametrize(
    ("log_prob", "message"),
    [
        (
            lambda z: -z.square(),
            r"log_prob must return shape \(1,\) for values of shape \(1, 2\) \(one number per draw\).*; sum over",
        ),
        (lambda z: -z.square().sum(), r"must return shape \(\d+,\) for values of shape \(\d+, 2\).*batched=False"),
        (lambda z: -z.square().sum(-1).double(), r"must return dtype torch.float32.*found torch.float64.*convert"),
        (lambda z: -float(z.square().sum()), r"must return a torch.Tensor, found float"),
        (lambda z: None, r"must return a torch.Tensor, found NoneType"),
    ],
    ids=["too wide", "summed over draws", "dtype", "number", "nothing"],
)
def test_log_density_of_a_wrong_kind(log_prob: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        step(LogDensity(log_prob, (2,)))


def test_log_density_arguments() -> None:
    def log_prob(z: Tensor) -> Tensor:
        return -z.square().sum(-1)

    with pytest.raises(ValueError, match=r"either event_shape .* or sites"):
        LogDensity(log_prob)
    with pytest.raises(ValueError, match=r"either event_shape .* or sites"):
        LogDensity(log_prob, (2,), {"x": (constraints.real, (2,))})
    with pytest.raises(ValueError, match=r"init\['z'\] must have shape \(2,\), found \(3,\)"):
        LogDensity(log_prob, (2,), init=torch.zeros(3))
    sites = {"x": (constraints.positive, (2,))}
    with pytest.raises(ValueError, match=r"init\['x'\] lies outside its support"):
        LogDensity(log_prob, sites=sites, init={"x": -torch.ones(2)})
    with pytest.raises(ValueError, match=r"init must give a value for each of the sites \['x'\]"):
        LogDensity(log_prob, sites=sites, init={"y": torch.ones(2)})
    with pytest.raises(ValueError, match=r"sites\['x'\].*support LowerCholesky.*corr_cholesky sites instead"):
        LogDensity(log_prob, sites={"x": (constraints.lower_cholesky, (2, 2))})


# -- parts --------------------------------------------------------------------------------------------------


def normal() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))


class Plain(nn.Module):
    def __init__(self, n_in: int, n_out: int, noise_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.noise_dim = noise_dim

    def forward(self, noise: Tensor) -> Tensor:
        out: Tensor = self.linear(noise)
        return out


def test_sampler_of_the_wrong_width() -> None:
    with pytest.raises(ValueError, match=r"sampler must map noise \(2, 4\) to \(2, 3\).*found \(2, 5\)"):
        AVBGuide(normal, sampler=Plain(4, 5, 4)).setup()
    with pytest.raises(ValueError, match=r"sampler failed on noise of shape \(2, 6\)"):
        AVBGuide(normal, sampler=Plain(4, 3, 6)).setup()
    AVBGuide(normal, sampler=Plain(4, 3, 4)).setup()


def test_sampler_without_noise_dim() -> None:
    with pytest.raises(TypeError, match=r"sampler=Linear must say how wide its noise is.*noise_dim, or pass Module"):
        AVBGuide(normal, sampler=nn.Linear(4, 3))
    AVBGuide(normal, sampler=avbvi.ModuleSampler(nn.Linear(4, 3), noise_dim=4)).setup()


@pytest.mark.parametrize("role", ["trunk", "contrast", "adversary", "sampler"])
def test_part_of_the_wrong_type(role: str) -> None:
    wrong: Any = avbvi.GaussianContrast if role != "sampler" else "residual"  # a class or a name, not an object
    with pytest.raises(TypeError, match=rf"{role} must be a .*, found (type|str|ABCMeta)"):
        AVBGuide(normal, **{role: wrong})


@pytest.mark.parametrize(
    ("role", "part"),
    [
        ("trunk", avbvi.AffineTrunk),
        ("contrast", avbvi.GaussianContrast),
        ("sampler", avbvi.ResidualSampler),
        ("adversary", avbvi.MLPAdversary),
    ],
)
def test_part_of_another_width(role: str, part: Any) -> None:
    def wider() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    shared: dict[str, Any] = {role: part()}
    AVBGuide(normal, **shared).setup()
    with pytest.raises(ValueError, match=rf"{part.__name__} was built for 3 .* but the model has 4; give each guide"):
        AVBGuide(wider, **shared).setup()


def test_prior_contrast_of_a_log_density() -> None:
    model = LogDensity(lambda z: -z.square().sum(-1), (2,))
    guide = AVBGuide(model, contrast=avbvi.PriorContrast(), trunk=avbvi.IdentityTrunk())
    with pytest.raises(ModelError, match=r"PriorContrast\(\) needs a prior.*use GaussianContrast\(\)"):
        step(model, guide)


def test_prior_contrast_with_a_trunk() -> None:
    """The prior is a density of latent coordinates; a trunk's base coordinates are others."""
    for trunk in (None, AffineTrunk()):
        with pytest.raises(ValueError, match=r"PriorContrast\(\).*trunk=IdentityTrunk\(\)"):
            AVBGuide(normal, contrast=avbvi.PriorContrast(), trunk=trunk)


def test_unknown_keywords() -> None:
    with pytest.raises(TypeError, match="adaptive_contrast"):
        AVBGuide(normal, adaptive_contrast=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="n_particles"):
        AdversarialELBO(n_particles=3)  # type: ignore[call-arg]


# -- the ELBO -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", [AutoNormal(normal), lambda: None], ids=["AutoNormal", "function"])
def test_guide_that_is_none_of_ours(guide: Any) -> None:
    with pytest.raises(TypeError, match=r"guide must be an AVBGuide or a module that holds one, found \w+"):
        step(normal, guide)


@pytest.mark.parametrize("name", ["steps", "num_particles", "adversary_steps", "adversary_lr"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_counts_and_rates_must_be_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be positive, found {value}"):
        AdversarialELBO(**{name: value})


def test_other_options() -> None:
    with pytest.raises(ValueError, match="pretrain_steps must not be negative, found -1"):
        AdversarialELBO(pretrain_steps=-1)
    for options in ({"num_particles": 4}, {"vectorize_particles": True}):
        with pytest.raises(ValueError, match="num_particles and vectorize_particles belong to the given elbo"):
            AdversarialELBO(Trace_ELBO(), **options)
    for wrong in (Trace_ELBO, "trace"):
        with pytest.raises(
            TypeError, match=r"elbo must be a Pyro ELBO such as Trace_ELBO\(\), found (type|str|ABCMeta)"
        ):
            AdversarialELBO(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["anneal", "polish", "average", "adversary_floor"])
@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_shares_of_a_schedule(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"Schedule\({name}=\.\.\.\) must be in \[0, 1\), found {value}"):
        avbvi.Schedule(**{name: value})


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_share_of_the_trunk(value: float) -> None:
    with pytest.raises(ValueError, match=rf"Schedule\(trunk=\.\.\.\) must be in \[0, 1\], found {value}"):
        avbvi.Schedule(trunk=value)


@pytest.mark.parametrize("value", [0.0, 1.1, math.nan])
def test_start_of_annealing(value: float) -> None:
    with pytest.raises(ValueError, match=rf"Schedule\(beta_start=\.\.\.\) must be in \(0, 1\], found {value}"):
        avbvi.Schedule(beta_start=value)


def test_a_sum_over_draws_inside_the_model() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.factor("f", -x.square().sum())

    with pytest.raises(ModelError, match=r"by itself but .* among others.*sums over draws"):
        AdversarialELBO(num_particles=8).loss_and_grads(model, AVBGuide(model))
