"""Objectives: f-divergences against their definition and against closed forms for normals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torch.func import grad, vmap

from avbvi.objectives import (
    AlphaDivergence,
    FDivergence,
    JensenShannon,
    KullbackLeibler,
    Logistic,
    NeymanChiSquared,
    Objective,
    PearsonChiSquared,
    ReverseKullbackLeibler,
    SquaredHellinger,
    TriangularDiscrimination,
)

Generator = Callable[[Tensor], Tensor]


def alpha_generator(alpha: float) -> Generator:
    return lambda u: (u**alpha - 1.0 - alpha * (u - 1.0)) / (alpha * (alpha - 1.0))


#: Each objective with its f, written down from the literature.
CASES: list[tuple[FDivergence, Generator]] = [
    (Logistic(), lambda u: u * u.log() - (u + 1.0) * (u + 1.0).log()),
    (JensenShannon(), lambda u: 0.5 * (u * u.log() - (u + 1.0) * (0.5 * (u + 1.0)).log())),
    (TriangularDiscrimination(), lambda u: (u - 1.0).square() / (u + 1.0)),
    (KullbackLeibler(), lambda u: u * u.log()),
    (ReverseKullbackLeibler(), lambda u: -u.log()),
    (SquaredHellinger(), lambda u: (u.sqrt() - 1.0).square()),
    (PearsonChiSquared(), lambda u: (u - 1.0).square()),
    (NeymanChiSquared(), lambda u: (1.0 - u).square() / u),
    (AlphaDivergence(0.3), alpha_generator(0.3)),
    (AlphaDivergence(1.7), alpha_generator(1.7)),
    (AlphaDivergence(-0.6), alpha_generator(-0.6)),
    (AlphaDivergence(1.0), lambda u: u * u.log() - u + 1.0),
    (AlphaDivergence(0.0), lambda u: -u.log() + u - 1.0),
]
EACH = pytest.mark.parametrize(("objective", "f"), CASES, ids=[str(objective) for objective, _ in CASES])
#: f* where the literature has it in closed form.
CONJUGATES: dict[type[FDivergence], Generator] = {
    Logistic: lambda t: -torch.log(1.0 - t.exp()),
    KullbackLeibler: lambda t: (t - 1.0).exp(),
    ReverseKullbackLeibler: lambda t: -1.0 - (-t).log(),
    SquaredHellinger: lambda t: t / (1.0 - t),
    PearsonChiSquared: lambda t: t.square() / 4.0 + t,
    NeymanChiSquared: lambda t: 2.0 - 2.0 * (1.0 - t).sqrt(),
}
PAIRS = {
    1: (
        MultivariateNormal(torch.tensor([0.4]).double(), torch.tensor([[0.9]]).double()),
        MultivariateNormal(torch.tensor([-0.2]).double(), torch.tensor([[1.2]]).double()),
    ),
    2: (
        MultivariateNormal(torch.tensor([0.3, -0.4]).double(), torch.tensor([[0.9, 0.3], [0.3, 0.8]]).double()),
        MultivariateNormal(torch.tensor([-0.1, 0.2]).double(), torch.tensor([[1.0, 0.2], [0.2, 1.2]]).double()),
    ),
}


def best_output(objective: FDivergence, log_ratio: Tensor) -> Tensor:
    """T* at these log-ratios, as the class's docstring has it."""
    return log_ratio + 1.0 if isinstance(objective, KullbackLeibler) else log_ratio.clone()


def grid(dim: int) -> tuple[Tensor, float]:
    """Points (n, dim) that the trapezoidal rule needs for normals, and the volume of a cell."""
    axis = torch.linspace(-16.0, 16.0, 401, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * dim).reshape(-1, dim), float(axis[1] - axis[0]) ** dim


def power_integral(q: MultivariateNormal, r: MultivariateNormal, alpha: float) -> float:
    """The integral of q^alpha r^(1 - alpha), completed to a square."""
    a, b = alpha * q.precision_matrix, (1.0 - alpha) * r.precision_matrix
    precision, linear = a + b, a @ q.loc + b @ r.loc
    constant = q.loc @ a @ q.loc + r.loc @ b @ r.loc
    log_det = alpha * q.precision_matrix.logdet() + (1.0 - alpha) * r.precision_matrix.logdet() - precision.logdet()
    return math.exp(0.5 * float(log_det + linear @ torch.linalg.solve(precision, linear) - constant))


def closed_form(objective: FDivergence, q: MultivariateNormal, r: MultivariateNormal) -> float | None:
    """D_f of two normals, where there is one."""
    match objective:
        case KullbackLeibler() | AlphaDivergence(alpha=1.0):
            return float(kl_divergence(q, r))
        case ReverseKullbackLeibler() | AlphaDivergence(alpha=0.0):
            return float(kl_divergence(r, q))
        case SquaredHellinger():
            return 2.0 - 2.0 * power_integral(q, r, 0.5)
        case PearsonChiSquared():
            return power_integral(q, r, 2.0) - 1.0
        case NeymanChiSquared():
            return power_integral(q, r, -1.0) - 1.0
        case AlphaDivergence(alpha):
            return (power_integral(q, r, alpha) - 1.0) / (alpha * (alpha - 1.0))
    return None


def slopes(of: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    t = t.clone().requires_grad_()
    (slope,) = torch.autograd.grad(of(t).sum(), t)
    return slope


def test_no_objective_is_left_out() -> None:
    assert {type(objective).__name__ for objective, _ in CASES} == set(Objective.registry) - {"FDivergence"}


# -- what they are --------------------------------------------------------------------------------------


@EACH
def test_the_best_output_is_where_the_activation_is_the_slope_of_f(objective: FDivergence, f: Generator) -> None:
    v = torch.linspace(-6.0, 6.0, 49, dtype=torch.float64)
    t = best_output(objective, v)
    torch.testing.assert_close(objective.activated(t), slopes(f, v.exp()), rtol=1e-9, atol=1e-10)
    assert torch.equal(objective.log_ratio(t), t - 1.0 if isinstance(objective, KullbackLeibler) else v)


@EACH
def test_the_penalty_is_the_convex_conjugate_of_f(objective: FDivergence, f: Generator) -> None:
    for v in np.linspace(-3.0, 3.0, 13):
        t = best_output(objective, torch.tensor(v, dtype=torch.float64))
        slope = float(objective.activated(t))

        def negative(log_u: float, slope: float = slope) -> float:
            u = torch.tensor(log_u, dtype=torch.float64).exp()
            return float(f(u) - slope * u)

        found = minimize_scalar(negative, bounds=(v - 5.0, v + 5.0), method="bounded", options={"xatol": 1e-9})
        assert found.x == pytest.approx(v, abs=1e-5)
        assert float(objective.conjugate(t)) == pytest.approx(-found.fun, rel=1e-9, abs=1e-9)
        if type(objective) in CONJUGATES:
            known = CONJUGATES[type(objective)](torch.tensor(slope, dtype=torch.float64))
            assert float(objective.conjugate(t)) == pytest.approx(float(known), rel=1e-9, abs=1e-9)


def test_the_loss_of_equation_6_10_is_as_printed() -> None:
    t_q, t_r = torch.randn(11).double(), 2.0 * torch.randn(7).double()
    expected = sum(math.exp(t - 1.0) for t in t_r.tolist()) / 7 - sum(t_q.tolist()) / 11
    assert float(KullbackLeibler().loss(t_q, t_r)) == pytest.approx(expected, rel=1e-12)
    assert torch.equal(KullbackLeibler().log_ratio(t_q), t_q - 1.0)


@pytest.mark.parametrize(
    ("alpha", "other", "factor"),
    [
        (1.0, KullbackLeibler(), 1.0),
        (0.0, ReverseKullbackLeibler(), 1.0),
        (0.5, SquaredHellinger(), 2.0),
        (2.0, PearsonChiSquared(), 0.5),
        (-1.0, NeymanChiSquared(), 0.5),
    ],
)
def test_members_of_the_alpha_family(alpha: float, other: FDivergence, factor: float) -> None:
    v_q, v_r = torch.randn(9).double(), torch.randn(5).double()
    loss = AlphaDivergence(alpha).loss(v_q, v_r)
    expected = factor * other.loss(best_output(other, v_q), best_output(other, v_r))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    near = AlphaDivergence(alpha + 1e-7).loss(v_q, v_r)
    torch.testing.assert_close(near, loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", PAIRS)
@EACH
def test_the_bound_is_attained_by_the_log_ratio_of_two_normals(objective: FDivergence, f: Generator, dim: int) -> None:
    q, r = PAIRS[dim]
    x, volume = grid(dim)
    log_q, log_r = q.log_prob(x), r.log_prob(x)
    t = best_output(objective, log_q - log_r)
    torch.testing.assert_close(objective.log_ratio(t), log_q - log_r, rtol=1e-12, atol=1e-12)
    # At the grid's edge exp(-1000) times exp(900): the product is 0, its factors must not be.
    near = torch.maximum(log_q, log_r) > -200.0
    bound = float(((log_q.exp() * objective.activated(t)) - (log_r.exp() * objective.conjugate(t)))[near].sum())
    expected = closed_form(objective, q, r)
    if expected is None:
        u = (log_q - log_r).exp()
        expected = float((log_r.exp() * f(u))[near & (u > 0.0)].sum()) * volume
    assert bound * volume == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_jensen_shannon_in_its_two_forms() -> None:
    q, r = PAIRS[1]
    x, volume = grid(1)
    density_q, density_r = q.log_prob(x).exp(), r.log_prob(x).exp()
    log_middle = (0.5 * (density_q + density_r)).log()
    kls = [(d * (law.log_prob(x) - log_middle)).nan_to_num().sum() for d, law in ((density_q, q), (density_r, r))]
    js = 0.5 * float(sum(kls)) * volume
    assert js > 0.03
    t = q.log_prob(x) - r.log_prob(x)
    for objective, expected in ((Logistic(), 2.0 * js - math.log(4.0)), (JensenShannon(), js)):
        bound = (density_q * objective.activated(t) - density_r * objective.conjugate(t)).sum() * volume
        assert float(bound) == pytest.approx(expected, abs=1e-9)


@EACH
def test_the_estimate_from_draws_is_the_bound_within_its_standard_error(objective: FDivergence, f: Generator) -> None:
    q, r = PAIRS[1]
    x, volume = grid(1)
    # A T that is wrong, for which the bound is not tight, and whose terms have all moments.
    n = 40_000
    x_q, x_r = q.sample((n,)), r.sample((2 * n,))

    def output(x: Tensor) -> Tensor:
        return best_output(objective, 0.7 * torch.tanh(x.squeeze(-1)))

    found = objective.divergence(output(x_q), output(x_r))
    terms_q, terms_r = objective.activated(output(x)), objective.conjugate(output(x))
    bound = float((q.log_prob(x).exp() * terms_q - r.log_prob(x).exp() * terms_r).sum()) * volume
    assert abs(found.value - bound) < 4.5 * found.stderr
    exact = closed_form(objective, q, r)
    if exact is not None:
        assert bound < exact - 1e-3
    variance = 0.0
    for law, terms, number in ((q, terms_q, n), (r, terms_r, 2 * n)):
        density = law.log_prob(x).exp() * volume
        variance += float((density * terms.square()).sum() - (density * terms).sum() ** 2) / number
    assert found.stderr == pytest.approx(math.sqrt(variance), rel=0.05)
    assert found.value == pytest.approx(-float(objective.loss(output(x_q), output(x_r))), rel=1e-9)


def test_an_estimate_needs_draws_of_both_laws() -> None:
    with pytest.raises(ValueError, match="draws of both laws, found 0 and 3"):
        Logistic().divergence(torch.zeros(0), torch.zeros(3))
    assert math.isnan(Logistic().divergence(torch.zeros(1), torch.zeros(3)).stderr)


# -- the minimum ----------------------------------------------------------------------------------------


def tabular() -> tuple[Tensor, Tensor]:
    """Two laws of twelve cells that differ by up to five nats."""
    return tuple(torch.softmax(1.5 * torch.randn(12).double(), 0) for _ in range(2))  # type: ignore[return-value]


@EACH
def test_nothing_is_better_than_the_log_ratio(objective: FDivergence, f: Generator) -> None:
    q, r = tabular()

    def losses(t: Tensor) -> Tensor:
        return r * objective.conjugate(t) - q * objective.activated(t)

    best = best_output(objective, (q / r).log())
    assert float((q / r).log().abs().max()) > 1.5
    gradient = slopes(losses, best)
    size = q * slopes(objective.activated, best)
    assert float(size.abs().min()) > 1e-5
    torch.testing.assert_close(gradient, torch.zeros_like(q), rtol=0.0, atol=1e-12)
    for direction in (torch.ones(12), torch.randn(12), torch.eye(12)[int(q.argmin())]):
        for step in (0.01, -0.01, 0.5, -0.5, 2.0, -2.0):
            assert float(losses(best + step * direction.double()).sum()) > float(losses(best).sum())
    # Every cell's loss falls up to its log-ratio and rises from there.
    steps = torch.linspace(-4.0, 4.0, 81, dtype=torch.float64)[:, None]
    slope = slopes(losses, best + steps)
    assert bool((slope.sign() == steps.sign())[steps.squeeze().abs() > 1e-9].all())


@EACH
def test_the_loss_is_convex_where_the_docstring_says_so(objective: FDivergence, f: Generator) -> None:
    convex = isinstance(
        objective, Logistic | JensenShannon | KullbackLeibler | ReverseKullbackLeibler | SquaredHellinger
    ) or (isinstance(objective, AlphaDivergence) and 0.0 <= objective.alpha <= 1.0)
    t = torch.linspace(-8.0, 8.0, 161, dtype=torch.float64)
    penalties = (objective.conjugate, lambda s: -objective.activated(s))
    curvatures = torch.cat([vmap(grad(grad(of)))(t) for of in penalties])
    assert bool((curvatures >= -1e-12).all()) == convex
    # In g(T), which is what theory has as T, all are: the slope of f* there is the ratio, which rises.
    ratio = slopes(objective.conjugate, t) / slopes(objective.activated, t)
    torch.testing.assert_close(ratio, objective.log_ratio(t).exp(), rtol=1e-6, atol=0.0)


# -- numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "reach_q", "reach_r"),
    [
        # The largest |T|, towards both sides, at which terms and slopes are finite in single precision.
        (Logistic(), 1e30, 1e30),
        (JensenShannon(), 1e30, 1e30),
        (TriangularDiscrimination(), 1e30, 1e30),
        (KullbackLeibler(), 1e30, 89.0),
        (ReverseKullbackLeibler(), 88.0, 1e30),
        (SquaredHellinger(), 177.0, 177.0),
        (PearsonChiSquared(), 87.0, 44.0),
        (NeymanChiSquared(), 44.0, 87.0),
        (AlphaDivergence(0.25), 117.0, 348.0),
    ],
    ids=str,
)
def test_how_far_terms_and_slopes_are_finite(objective: FDivergence, reach_q: float, reach_r: float) -> None:
    for term, reach in ((objective.activated, reach_q), (objective.conjugate, reach_r)):
        t = torch.tensor([-reach, reach])
        assert bool(torch.isfinite(term(t)).all())
        assert bool(torch.isfinite(slopes(term, t)).all())
        if reach < 1e30:
            assert not bool(torch.isfinite(term(torch.tensor([-2.0 * reach, 2.0 * reach]))).all())


def test_equation_6_10_overflows_and_says_so() -> None:
    """It is not clipped into something else: the step is skipped by whoever sees the gradient."""
    t_r = torch.tensor([0.0, 100.0], requires_grad=True)
    loss = KullbackLeibler().loss(torch.zeros(2), t_r)
    loss.backward()
    assert torch.isinf(loss.detach())
    assert torch.equal(t_r.grad, torch.tensor([0.5 * math.exp(-1.0), math.inf]))


@pytest.mark.parametrize(
    "objective",
    [SquaredHellinger(), PearsonChiSquared(), NeymanChiSquared(), *map(AlphaDivergence, (0.3, 1e-3, -0.6, 1.7))],
    ids=str,
)
def test_small_outputs_lose_no_digits(objective: FDivergence) -> None:
    # With exp(T) - 1 in place of expm1(T) half of the digits would be gone.
    t = torch.tensor([-1e-4, -3e-5, 2e-5, 1e-4])
    for term in (objective.activated, objective.conjugate):
        torch.testing.assert_close(term(t).double(), term(t.double()), rtol=4e-7, atol=0.0)
        assert float(term(torch.zeros(()))) == 0.0


@pytest.mark.parametrize(
    ("alpha", "error", "said"),
    [
        ("half", TypeError, "alpha must be a number, found str 'half'"),
        (True, TypeError, "alpha must be a number"),
        (math.inf, ValueError, r"alpha must be finite, found inf; for KL\(q, r\) take 1"),
        (math.nan, ValueError, "alpha must be finite"),
    ],
)
def test_alpha_is_checked(alpha: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        AlphaDivergence(alpha)


def test_logistic_loss_is_the_cross_entropy() -> None:
    t_q, t_r = torch.randn(7).double() * 3.0, torch.randn(5).double() * 3.0
    expected = -np.log(expit(t_q.numpy())).mean() - np.log(1.0 - expit(t_r.numpy())).mean()
    assert float(Logistic().loss(t_q, t_r)) == pytest.approx(expected, rel=1e-12)
    assert torch.equal(Logistic().log_ratio(t_q), t_q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [50.0, 1e4, 1e30])
def test_logistic_loss_is_stable_at_extreme_logits(dtype: torch.dtype, size: float) -> None:
    for sign_q, sign_r in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        t_q = torch.tensor([sign_q * size], dtype=dtype, requires_grad=True)
        t_r = torch.tensor([sign_r * size], dtype=dtype, requires_grad=True)
        loss = Logistic().loss(t_q, t_r)
        loss.backward()
        expected = -log_expit(sign_q * size) - log_expit(-sign_r * size)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-6, abs=1e-20)
        assert float(t_q.grad) == pytest.approx(-expit(-sign_q * size), abs=1e-7)
        assert float(t_r.grad) == pytest.approx(expit(sign_r * size), abs=1e-7)
