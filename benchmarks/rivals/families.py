"""Families of known density, fitted to the unconstrained target by the path ("sticking the landing") gradient.

The gradient of the ELBO through the draws alone, log q evaluated with its parameters detached (Roeder, Wu and
Duvenaud 2017, Sticking the Landing, NeurIPS): its variance vanishes as q approaches the posterior.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import pyro
import torch
from pyro.distributions.transforms import affine_autoregressive
from torch import Tensor, nn
from torch.func import functional_call

import avbvi
from avbvi.reference import constrained
from avbvi.starts import LaplaceModes, judged_by_draws, laplace_modes
from avbvi.targets import UnconstrainedTarget
from avbvi.trunks import standard_normal_log_prob
from benchmarks.fitting import Fitted, Recorder, mean_with_error
from benchmarks.problems import Draws, Problem

#: Files of avbvi that these fits use.
SOURCES = ("avbvi/layout.py", "avbvi/schedules.py", "avbvi/starts", "avbvi/targets.py")
ELBO_DRAWS = 50_000


class Family(Protocol):
    """A parametric density on unconstrained space."""

    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""

    def loss(self, target: UnconstrainedTarget) -> Tensor:
        """A scalar whose gradient is the path gradient of -ELBO."""

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """n draws (n, dim) and their log q (n,)."""


def by_path_gradient(
    problem: Problem,
    seed: int,
    minutes: float,
    snapshots: Sequence[float],
    *,
    family: Callable[[UnconstrainedTarget], Family],
    lr: float,
) -> Fitted:
    """Adam with cosine decay of the rate over the time given; steps with a non-finite gradient are skipped."""
    recorder = Recorder(problem, snapshots)
    pyro.set_rng_seed(seed)
    target = _target(problem)
    q = family(target)
    parameters = q.parameters()
    clock, schedule, steps, skipped = avbvi.schedules.Clock(60.0 * minutes), avbvi.Schedule(), 0, 0
    optimiser = avbvi.schedules.ScheduledAdam(
        parameters, lr=lr, betas=(0.9, 0.999), factor=lambda: schedule.factor(clock.progress())
    )

    def sample(n: int) -> Draws:
        with torch.no_grad():
            return constrained(target, q.draw(n)[0])

    with pyro.validation_enabled(False):
        while clock.progress() < 1.0:
            loss = q.loss(target)
            optimiser.zero_grad()
            loss.backward()
            if all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in parameters):
                optimiser.step()
            else:
                skipped += 1
            steps += 1
            clock.started += recorder.look(steps, sample)
    seconds = recorder.seconds()
    with torch.no_grad(), pyro.validation_enabled(False):
        z, log_q = q.draw(ELBO_DRAWS)
        elbo = mean_with_error(target.log_prob(z).double() - log_q.double())
    figures = {"steps": steps, "skipped_steps": skipped}
    return Fitted(sample, seconds, elbo, True, figures, recorder.last(seconds, steps, sample))


def _target(problem: Problem) -> UnconstrainedTarget:
    # By way of a guide, whose networks draw random numbers: a seed goes on giving the fits that it gave.
    target = avbvi.AVBGuide(problem.model).setup(*problem.args).target(*problem.args)
    assert target is not None
    return target


def _modes(target: UnconstrainedTarget) -> LaplaceModes | None:
    """Laplace approximations from 32 starting points; a search that wanders off to NaN is undone, not an error."""
    with pyro.validation_enabled(False):
        return laplace_modes(target.log_prob, target.starting_points(32))


class GaussianMixture:
    """Full-covariance Gaussian mixture, draws stratified by component.

    It starts from multi-start Laplace, components shared out over the modes and jittered.
    """

    def __init__(self, target: UnconstrainedTarget, *, components: int = 4, particles: int = 64) -> None:
        modes = _modes(target)
        assert modes is not None
        self.particles = particles
        index = torch.arange(components) % len(modes.locs)
        tril = torch.linalg.cholesky(modes.covariances[index])
        noise = torch.randn(components, target.layout.dim, 1)
        self.locs = (modes.locs[index] + 0.5 * (tril @ noise).squeeze(-1)).requires_grad_()
        self.lower = torch.tril(tril, -1).clone().requires_grad_()
        self.log_diagonal = tril.diagonal(dim1=1, dim2=2).log().clone().requires_grad_()
        self.logits = torch.zeros(components, requires_grad=True)

    def parameters(self) -> list[Tensor]:
        return [self.locs, self.lower, self.log_diagonal, self.logits]

    @staticmethod
    def _mixture(
        locs: Tensor, lower: Tensor, log_diagonal: Tensor, logits: Tensor
    ) -> torch.distributions.MixtureSameFamily:
        scale_tril = torch.tril(lower, -1) + torch.diag_embed(log_diagonal.exp())
        gaussians = torch.distributions.MultivariateNormal(locs, scale_tril=scale_tril, validate_args=False)
        weights = torch.distributions.Categorical(logits=logits, validate_args=False)
        return torch.distributions.MixtureSameFamily(weights, gaussians, validate_args=False)

    def _detached(self) -> torch.distributions.MixtureSameFamily:
        return self._mixture(*(p.detach() for p in self.parameters()))

    def loss(self, target: UnconstrainedTarget) -> Tensor:
        components = len(self.logits)
        z = self._mixture(*self.parameters()).component_distribution.rsample((self.particles,)).transpose(0, 1)
        flat = z.reshape(-1, z.shape[-1])
        log_q = self._detached().log_prob(flat)
        terms = (target.log_prob(flat) - log_q).reshape(components, self.particles).mean(1)
        return -(self.logits.softmax(0) * terms).sum()

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        mixture = self._detached()
        z = mixture.sample((n,))
        return z, mixture.log_prob(z)


class AutoregressiveFlow:
    """Pyro's affine autoregressive flow from a standard normal, as in AutoIAFNormal.

    log q at a given z needs the slow inverse of the flow. Its gradient does not: with z = G(e),
    grad_z log q = J^-T grad_e (log N(e) - log|det J|), J = dG/de, from one batched product with all unit vectors.
    """

    def __init__(
        self,
        target: UnconstrainedTarget,
        *,
        transforms: int = 3,
        hidden: tuple[int, ...] = (64, 64),
        particles: int = 64,
    ) -> None:
        self.dim, self.particles = target.layout.dim, particles
        self.layers: Any = nn.ModuleList(affine_autoregressive(self.dim, list(hidden)) for _ in range(transforms))

    def parameters(self) -> list[Tensor]:
        return [*self.layers.parameters()]

    def carried(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """e (n, dim) to z (n, dim) and log|det dz/de| (n,)."""
        z, log_det = e, e.new_zeros(e.shape[:-1])
        for layer in self.layers:
            # Pyro's transforms remember their last input, by identity: not to answer with former weights.
            layer.clear_cache()
            moved = layer(z)
            log_det = log_det + layer.log_abs_det_jacobian(z, moved)
            z = moved
        return z, log_det

    def score(self, e: Tensor, z: Tensor, log_det: Tensor) -> Tensor:
        """grad_z log q (n, dim) with all parameters fixed, for z and log_det from ``carried(e)``."""
        (slope,) = torch.autograd.grad((standard_normal_log_prob(e) - log_det).sum(), e, retain_graph=True)
        unit = torch.eye(self.dim, dtype=e.dtype)[:, None].expand(self.dim, *e.shape)
        (rows,) = torch.autograd.grad(z, e, unit, retain_graph=True, is_grads_batched=True)
        # rows[i, n, j] = d z_i / d e_j of the n-th draw: J transposed has j first.
        return torch.linalg.solve(rows.permute(1, 2, 0), slope[..., None]).squeeze(-1)

    def loss(self, target: UnconstrainedTarget) -> Tensor:
        e = torch.randn(self.particles, self.dim, requires_grad=True)
        z, log_det = self.carried(e)
        score = self.score(e, z, log_det)
        return ((score * z).sum(-1) - target.log_prob(z)).mean()

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        e = torch.randn(n, self.dim)
        z, log_det = self.carried(e)
        return z, standard_normal_log_prob(e) - log_det


class SplineFlow:
    """zuko's coupling neural spline flow (Durkan et al. 2019) behind an affine map that starts at Laplace.

    zuko's splines act on [-5, 5], and its documentation asks for standardised features. The affine map (location
    and triangular factor, trained with the rest) starts at the moments of the Laplace approximations from 32
    starting points: the same start that avbvi gives its own guide.
    """

    def __init__(
        self,
        target: UnconstrainedTarget,
        *,
        transforms: int = 3,
        hidden: tuple[int, ...] = (64, 64),
        particles: int = 128,
    ) -> None:
        import zuko

        self.dim, self.particles = target.layout.dim, particles
        self.start, self.scale = torch.zeros(self.dim), torch.eye(self.dim)
        modes = _modes(target)
        with torch.no_grad(), pyro.validation_enabled(False):
            broad, log_q = target.broad_draws(1000)
            log_weights = target.log_prob(broad) - log_q
            modes = None if modes is None else judged_by_draws(modes, target.log_prob, log_weights)
        if modes is not None:
            self.start, covariance = modes.moments()
            self.scale = torch.linalg.cholesky(covariance)
        # In the start's coordinates, so that one learning rate suits all targets.
        self.shift = torch.zeros(self.dim, requires_grad=True)
        self.lower = torch.zeros(self.dim, self.dim, requires_grad=True)
        self.log_diagonal = torch.zeros(self.dim, requires_grad=True)
        nsf = zuko.flows.NSF(self.dim, transforms=transforms, hidden_features=hidden, passes=2, randperm=True)
        self.flow = _LogProb(nsf)

    def parameters(self) -> list[Tensor]:
        return [self.shift, self.lower, self.log_diagonal, *self.flow.parameters()]

    def _factor(self) -> Tensor:
        return torch.tril(self.lower, -1) + torch.diag_embed(self.log_diagonal.exp())

    def _placed(self, u: Tensor) -> Tensor:
        return self.start + (self.shift + u @ self._factor().mT) @ self.scale.mT

    def log_prob(self, z: Tensor) -> Tensor:
        """log q (n,) at z (n, dim), differentiable in z, parameters detached."""
        centred = (
            torch.linalg.solve_triangular(self.scale, (z - self.start).mT, upper=False) - self.shift.detach()[:, None]
        )
        u = torch.linalg.solve_triangular(self._factor().detach(), centred, upper=False).mT
        parameters = {name: p.detach() for name, p in self.flow.named_parameters()}
        log_det = self.log_diagonal.detach().sum() + self.scale.diagonal().log().sum()
        result: Tensor = functional_call(self.flow, parameters, (u,)) - log_det
        return result

    def loss(self, target: UnconstrainedTarget) -> Tensor:
        z = self._placed(self.flow.law().rsample((self.particles,)))
        return (self.log_prob(z) - target.log_prob(z)).mean()

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        z = self._placed(self.flow.law().sample((n,)))
        return z, self.log_prob(z)


class _LogProb(nn.Module):
    """A zuko flow with log_prob as its call, for ``functional_call``."""

    flow: Any

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = flow

    def law(self) -> Any:
        """The flow's distribution, with its weights as they are."""
        return self.flow()

    def forward(self, u: Tensor) -> Tensor:
        result: Tensor = self.flow().log_prob(u)
        return result


def zuko_missing(problem: Problem) -> str | None:
    """What the spline flow lacks here."""
    return None if importlib.util.find_spec("zuko") else "zuko is not installed (pip install zuko)"


mixture_4 = partial(by_path_gradient, family=GaussianMixture, lr=1e-2)
iaf_stl = partial(by_path_gradient, family=AutoregressiveFlow, lr=5e-3)
nsf = partial(by_path_gradient, family=SplineFlow, lr=1e-2)
