"""The registry: what every method promises, and that each finds a posterior that is known."""

import inspect
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import avbvi
from benchmarks import judging
from benchmarks.fitting import Fitted
from benchmarks.methods import METHODS
from benchmarks.problems import EIGHT_SCHOOLS_CLASSIC, Problem, stacked

ROOT = Path(__file__).resolve().parents[2]
DESIGN_NAMES = {
    *("default", "avb-pure", "paper", "trunk-only", "advi-meanfield", "advi-fullrank", "iaf", "nsf", "nuts", "hmc"),
}
COVARIANCE = torch.tensor([[1.0, 0.3], [0.3, 0.25]], dtype=torch.float64)
LOC = torch.tensor([2.0, -1.0], dtype=torch.float64)
FACTOR = torch.linalg.cholesky(COVARIANCE)


def _exact(n: int, seed: int) -> Tensor:
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return LOC + noise @ FACTOR.mT


def _log_prob(z: Tensor) -> Tensor:
    white = torch.linalg.solve_triangular(FACTOR.to(z), (z - LOC.to(z)).mT, upper=False)
    return -0.5 * white.square().sum(0)


GAUSSIAN = Problem(
    "gaussian",
    avbvi.LogDensity(lambda z: _log_prob(z.reshape(-1, 2)).reshape(z.shape[:-1]), event_shape=(2,)),
    exact=_exact,
    matrix=lambda draws: stacked(draws, "z"),
    log_z=math.log(2 * math.pi) + 0.5 * float(torch.logdet(COVARIANCE)),
)


def _model(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    pyro.deterministic("double", 2.0 * scale)
    with pyro.plate("data", len(y)):
        mean = pyro.deterministic("mean", b[..., 0] + b[..., 1] * x)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


X, Y = torch.linspace(-1.0, 1.0, 5), torch.tensor([0.3, -0.2, 0.5, 1.0, 0.7])
#: Arguments, a constrained site, a site with an event dimension, deterministic sites in and outside a plate.
REGRESSION = Problem(
    "regression",
    _model,
    args=(X, Y),
    exact=lambda n, seed: torch.zeros(n, 3),
    matrix=lambda draws: torch.cat([stacked(draws, "b"), stacked(draws, "scale").log()], -1),
)


class CountedClock:
    """Progress by the number of times that it is asked, for runs that do not depend on the machine's speed.

    avbvi's own runs ask twice in a step, before it and in it: an odd number ends them where a run ends.
    """

    def __init__(self, seconds: float, started: float | None = None) -> None:
        self.asked, self.most, self.started = 0, seconds, 0.0

    def progress(self) -> float:
        self.asked += 1
        return min(self.asked / self.most, 1.0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avbvi.schedules, "Clock", CountedClock)
    monkeypatch.setattr(avbvi.training, "Clock", CountedClock)


def _available(name: str, problem: Problem = GAUSSIAN) -> None:
    lacking = METHODS[name].missing(problem)
    if lacking:
        pytest.skip(lacking)


@pytest.mark.parametrize("name", METHODS)
def test_contract(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.label
    assert callable(method)
    assert len(inspect.signature(method).parameters) == 4
    assert len({m.label for m in METHODS.values()}) == len(METHODS)
    for source in method.sources:
        assert (ROOT / source).exists(), source
    lacking = method.missing(EIGHT_SCHOOLS_CLASSIC)
    assert lacking is None or "not installed" in lacking


def test_names_are_those_of_the_boards() -> None:
    assert set(METHODS) >= DESIGN_NAMES


def test_what_is_missing_is_said() -> None:
    for name in ("numpyro-iaf", "numpyro-nuts"):
        assert METHODS[name].missing(GAUSSIAN) in (
            "the problem is not written for NumPyro",
            "numpyro is not installed (pip install numpyro)",
        )


SLOW = pytest.mark.slow
#: Calls of the clock for a converged fit; a guide asks several times in a step.
CONVERGED = {
    "mixture-4": 300,
    "nsf": 500,
    "iaf-stl": 1200,
    "advi-fullrank": 6000,
    "advi-lowrank": 9000,
    "trunk-only": 1200,
}


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=SLOW if n in ("nsf", "trunk-only", "advi-lowrank") else ()) for n in CONVERGED]
)
def test_a_correlated_gaussian_is_found(name: str) -> None:
    _available(name)
    fitted = METHODS[name](GAUSSIAN, 0, CONVERGED[name] / 60)
    draws = GAUSSIAN.matrix(fitted.sample(20_000))
    exact = _exact(20_000, 1)
    error = (draws.mean(0) - LOC).abs() / COVARIANCE.diagonal().sqrt()
    assert float(error.max()) < 0.1
    ratios = judging.sd_ratios(draws, exact)
    assert float(ratios.min()) > 0.9
    assert float(ratios.max()) < 1.1
    # A Gaussian is in every one of these families: the exact KL that is reported has to be small as well.
    assert fitted.exact
    assert fitted.elbo is not None
    assert GAUSSIAN.log_z is not None
    assert -4 * fitted.elbo.stderr - 1e-4 < GAUSSIAN.log_z - fitted.elbo.value < 0.02


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=SLOW if n.startswith("paper") else ()) for n, m in METHODS.items() if m.curves],
)
def test_sites_arguments_and_snapshots(name: str) -> None:
    _available(name, REGRESSION)
    method = METHODS[name]
    fitted = method(REGRESSION, 0, 9 / 60, [1e-6])
    draws = fitted.sample(7)
    shapes = {site: tuple(value.shape) for site, value in draws.items()}
    assert shapes == {"b": (7, 2), "scale": (7,), "double": (7,), "mean": (7, 5)}
    assert bool((draws["scale"] > 0).all())
    assert torch.allclose(draws["double"], 2.0 * draws["scale"])
    assert torch.allclose(draws["mean"], draws["b"][:, :1] + draws["b"][:, 1:] * X, atol=1e-6)
    # One after the first step, one of the finished fit.
    first, last = fitted.snapshots
    assert (first.steps, last.steps) == (1, fitted.figures["steps"])
    assert last.seconds == fitted.seconds
    assert first.draws.shape == last.draws.shape == (10_000, 3)
    assert method(REGRESSION, 0, 9 / 60).snapshots == []


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("name", ["mixture-4", "nsf", "iaf-stl", "avb-pure", "own-sampler"])
def test_looking_does_not_change_a_run(name: str) -> None:
    _available(name)

    def fit(marks: list[float]) -> Fitted:
        pyro.set_rng_seed(5)
        return METHODS[name](GAUSSIAN, 3, 16 / 60, marks)

    plain, watched = fit([]), fit([1e-6, 0.05])
    assert watched.figures["steps"] == plain.figures["steps"]
    assert watched.elbo == plain.elbo
