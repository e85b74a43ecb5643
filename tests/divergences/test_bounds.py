"""The held-out bound on KL(q, p) against closed forms, its own inequality, and what features add."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import chi2
from torch import Tensor

from avbvi.divergences import bounds, density_features, kl_lower_bound
from avbvi.divergences.networks import RatioNetwork, train_ratio
from models import eight_schools


def normal(n: int, dim: int, seed: int) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("dim", "length"), [(1, 0.5), (4, 0.7), (4, 1.5)])
def test_a_shift_of_normals_is_found_almost_in_full(dim: int, length: float) -> None:
    # KL(N(a, I), N(0, I)) = |a|^2 / 2, and log q/p is linear.
    x = normal(4000, dim, 1) + length / math.sqrt(dim)
    bound = kl_lower_bound(x, normal(5000, dim, 2), folds=2, width=64, blocks=1)
    kl = 0.5 * length**2
    assert bound.value < kl + 4.0 * bound.stderr
    assert bound.value > 0.9 * kl - 4.0 * bound.stderr
    assert bound.stderr < 0.25 * kl


@pytest.mark.parametrize("dim", [1, 8, 100])
def test_one_law_reads_as_nothing(dim: int) -> None:
    bound = kl_lower_bound(normal(2000, dim, 1), normal(3000, dim, 2), folds=2, width=64, blocks=1)
    assert abs(bound.value) <= 4.0 * bound.stderr
    assert abs(bound.value) < 0.02


def test_few_draws_of_one_law_do_not_read_as_a_divergence_on_average() -> None:
    # A judge that looked at the judged draws would be optimistic here above all.
    values = torch.tensor(
        [
            kl_lower_bound(normal(150, 3, 2 * s), normal(150, 3, 2 * s + 1), folds=2, width=16, blocks=1).value
            for s in range(6)
        ]
    )
    assert float(values.mean()) <= 4.0 * float(values.std()) / math.sqrt(len(values))
    assert float(values.mean()) > -0.15


@pytest.mark.parametrize("distance", [3.0, 30.0])
def test_laws_far_apart_read_less_than_the_divergence_and_stay_finite(distance: float) -> None:
    bound = kl_lower_bound(normal(2000, 2, 1) + distance, normal(2000, 2, 2), folds=2, width=64, blocks=1)
    limit = math.log(1000 / 16)
    assert 0.7 * limit < bound.value < min(limit, distance**2) + 4.0 * bound.stderr + 1e-9
    assert bound.stderr < 0.5


def rippled(n: int, seed: int) -> Tensor:
    """Draws of a 10-d standard normal times 1 + .9 cos(r^2 / 2), up to a constant, by rejection."""
    z = normal(3 * n, 10, seed)
    u = torch.rand(3 * n, generator=torch.Generator().manual_seed(seed + 1000), dtype=torch.float64)
    kept = z[u * 1.9 < 1.0 + 0.9 * torch.cos(0.5 * z.square().sum(1))]
    assert kept.shape[0] >= n
    return kept[:n]


def test_features_show_what_the_coordinates_hide() -> None:
    def weight(s: float) -> float:
        return 1.0 + 0.9 * math.cos(0.5 * s)

    mass = quad(lambda s: weight(s) * chi2.pdf(s, 10), 0, 80, limit=400)[0]
    kl = quad(lambda s: weight(s) / mass * math.log(weight(s) / mass) * chi2.pdf(s, 10), 0, 80, limit=400)[0]
    x, y = rippled(6000, 1), normal(6000, 10, 2)
    features = density_features(lambda z: -0.5 * z.square().sum(1))
    with_features = kl_lower_bound(x, y, features=features, folds=2, width=64)
    without = kl_lower_bound(x, y, folds=2, width=64)
    assert with_features.value < kl + 4.0 * with_features.stderr
    assert without.value + 4.0 * without.stderr < 0.25 * kl < with_features.value - 4.0 * with_features.stderr


def test_value_and_error_from_the_best_function(monkeypatch: pytest.MonkeyPatch) -> None:
    # With T = log q/p of two shifted normals the bound is KL in the mean, and its standard error
    # the spread over repetitions.
    shift, folds = 0.8, 3

    def held_out(
        q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor], fold: int, folds: int, **options: object
    ) -> tuple[Tensor, Tensor]:
        return tuple(shift * z[fold::folds, 0] - 0.5 * shift**2 for z, _ in (q, p))  # type: ignore[return-value]

    monkeypatch.setattr(bounds, "_held_out", held_out)
    runs = [kl_lower_bound(normal(200, 1, 2 * s) + shift, normal(500, 1, 2 * s + 1), folds=folds) for s in range(400)]
    values = torch.tensor([run.value for run in runs])
    assert abs(float(values.mean()) - 0.5 * shift**2) < 4.0 * float(values.std()) / 20.0
    mean_square = float(torch.tensor([run.stderr**2 for run in runs]).mean())
    assert float(values.var()) == pytest.approx(mean_square, rel=4.0 * math.sqrt(2.0 / 400))


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_scale_and_shift_maximise_the_bound(factor: float) -> None:
    t_q, t_p = factor * (0.3 * normal(5000, 1, 1)[:, 0] + 0.045), factor * (0.3 * normal(4000, 1, 2)[:, 0] - 0.045)
    scale, shift, value = bounds._calibrate(t_q, t_p)

    def loss(by: np.ndarray) -> float:
        s, c = by
        return -float((s * t_q + c).mean() - (s * t_p + c).exp().mean() + 1.0)

    best = minimize(loss, np.array([0.5, 0.0]), bounds=[(0.0, 2.0), (None, None)], method="L-BFGS-B", tol=1e-12)
    chance = 2.0 * (1.0 / 5000 + 1.0 / 4000)
    assert scale == pytest.approx(best.x[0] * (1.0 - chance / -best.fun), abs=2e-3)
    assert value == pytest.approx(-loss(np.array([scale, shift])), abs=1e-9)
    assert 0.0 < value <= -best.fun


def test_what_has_learned_nothing_is_scaled_to_zero() -> None:
    t = normal(1000, 2, 1)
    assert bounds._calibrate(t[:, 0] - 0.3, t[:, 1]) == (0.0, 0.0, 0.0)  # learned the opposite
    assert bounds._calibrate(torch.zeros(10), torch.zeros(10)) == (0.0, 0.0, 0.0)


def test_network_is_the_formula() -> None:
    network = RatioNetwork(inputs=3, width=5, blocks=2)
    generator = torch.Generator().manual_seed(0)
    u = normal(7, 3, 1)
    weights = network.weights(u, generator)
    assert torch.equal(network(weights, u), torch.zeros(7, dtype=torch.float64))
    weights = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]

    def silu(h: np.ndarray) -> np.ndarray:
        return h / (1.0 + np.exp(-h))

    w = [weight.numpy() for weight in weights]
    h = u.numpy() @ w[0].T + w[1]
    for first in (2, 6):
        h = h + silu(silu(h) @ w[first].T + w[first + 1]) @ w[first + 2].T + w[first + 3]
    out = silu(h) @ w[10].T + w[11]
    expected = out[:, 0] + (out[:, 1:] * u.numpy()).sum(1) / math.sqrt(3.0)
    np.testing.assert_allclose(network.values(weights, u).numpy(), expected, rtol=1e-12)


def test_training_keeps_the_snapshot_with_the_best_score() -> None:
    seen: list[Tensor] = []

    def score(weights: list[Tensor]) -> float:
        seen.append(weights[0].clone())
        return -abs(len(seen) - 4.0)

    best = train_ratio(
        RatioNetwork(2, 4, 0),
        normal(100, 2, 1).float() + 1.0,
        normal(100, 2, 2).float(),
        score=score,
        passes=1,
        batch_size=64,
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(best[0], seen[3])
    assert not torch.equal(best[0], seen[4])


def test_inputs_are_whitened_and_keep_far_draws_in_bounds() -> None:
    mix = torch.tensor([[1e-3, 0.0, 0.0], [0.9, 0.1, 0.0], [30.0, 0.0, 100.0]], dtype=torch.float64)
    z = normal(20_000, 3, 1) @ mix.T + 50.0
    z = torch.cat([z, torch.full((20_000, 1), 3.0, dtype=torch.float64)], 1)  # a constant coordinate
    f = 1e6 + 1e4 * normal(20_000, 1, 2)
    f[0], z[0, 0] = -1e30, 1e12
    inputs = bounds._Inputs(z[1:], f[1:])
    u = inputs(z[1:], f[1:])
    assert inputs(z, f).abs().max() < 500.0
    assert torch.equal(u[:, 3], torch.zeros(19_999))
    kept = u[:, [0, 1, 2, 4]].double()
    spread = kept.T.cov()
    # Of a standard normal v, 3 asinh(v / 3) has variance .913 (quadrature); 4 standard errors.
    torch.testing.assert_close(spread, 0.913 * torch.eye(4, dtype=torch.float64), atol=0.04, rtol=0.0)


def test_bound_is_seeded_and_indifferent_to_its_surroundings(device: torch.device) -> None:
    x, y = (normal(300, 2, 1) + 1.0).to(device), normal(200, 2, 2).to(device)
    options = {"folds": 2, "width": 8, "passes": 1}
    features = density_features(lambda z: -0.5 * z.square().sum(1))
    state = torch.random.get_rng_state()
    first = kl_lower_bound(x, y, features=features, seed=3, **options)
    torch.rand(5)
    with torch.no_grad():
        second = kl_lower_bound(x.cpu().numpy(), y, features=features, seed=3, **options)
    with torch.inference_mode():
        third = kl_lower_bound(x * 1.0, y * 1.0, features=features, seed=3, **options)
    torch.random.set_rng_state(state)
    assert kl_lower_bound(x, y, features=features, seed=4, **options) != first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert third == first
    assert second.value == pytest.approx(first.value, abs=0.0 if device.type == "cpu" else 0.1)


def test_density_features_are_value_and_score() -> None:
    z = normal(6, 3, 1)
    precision = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)
    with torch.no_grad():
        out = density_features(lambda z: -0.5 * (precision * z.square()).sum(1))(z)
    expected = torch.cat([-0.5 * (precision * z.square()).sum(1, keepdim=True), -precision * z], 1)
    torch.testing.assert_close(out, expected)
    assert not out.requires_grad
    with pytest.raises(ValueError, match=r"log_prob must map \(6, 3\) to \(6,\), got \(6, 3\)"):
        density_features(lambda z: -z.square())(z)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (lambda z: z.sum(1), ValueError, r"features\(x\) must have shape \(50, f\).*got \(50,\)"),
        (lambda z: z[:10], ValueError, r"features\(x\) must have shape \(50, f\).*got \(10, 2\)"),
        (lambda z: z.numpy(), TypeError, r"features\(x\) must return a tensor.*got ndarray"),
        (lambda z: z > 0, TypeError, r"features\(x\).*torch.bool"),
        (
            lambda z: torch.stack([z[:, 0], z[:, 1].log()], 1),
            ValueError,
            r"NaN or infinite.*of 50 draws, columns \[1\]",
        ),
        (lambda z: z[:, : z.shape[0] // 25 - 1], ValueError, "as many columns for x as for y, got 1 and 2"),
    ],
)
def test_features_that_cannot_be_used(
    features: Callable[[Tensor], Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kl_lower_bound(normal(50, 2, 1), normal(75, 2, 2), features=features, folds=2)


def test_options_out_of_range() -> None:
    x = normal(50, 2, 1)
    for option, value in (("folds", 1), ("width", 0), ("blocks", -1), ("passes", 0), ("batch_size", 1)):
        with pytest.raises(ValueError, match=f"{option} must be at least"):
            kl_lower_bound(x, x, **{option: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x has 50 draws; 3 folds need at least 60"):
        kl_lower_bound(x, normal(90, 2, 1))
    with pytest.raises(ValueError, match="y has 39 draws; 2 folds need at least 40"):
        kl_lower_bound(x, x[:39], folds=2)


def eight_schools_draws(n: int, seed: int) -> Tensor:
    draws = eight_schools.exact_posterior(n, seed)
    return torch.cat([draws["mu"][:, None], draws["tau"][:, None], draws["eta"]], 1)


def sheared(z: Tensor) -> Tensor:
    """Draws moved by three shears in turn: a map that is invertible and keeps volume."""
    z = z.clone()
    z[:, 2] += 0.09 * torch.cos(3.0 * z[:, 1])
    z[:, 0] += 0.04 * torch.sin(2.0 * z[:, 4])
    z[:, 1] += 0.04 * torch.sin(3.0 * z[:, 8])
    return z


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_divergence_of_a_few_hundredths_on_eight_schools_is_seen(seed: int) -> None:
    # q's density at F(z) is p(z), so that KL(q, p) = E_p[log p(z) - log p(F(z))].
    z = eight_schools_draws(400_000, 5)
    difference = eight_schools.log_density(z) - eight_schools.log_density(sheared(z))
    kl = float(difference.mean())
    assert 0.02 < kl < 0.04
    n = 50_000
    x, y = eight_schools_draws(n, 2 * seed + 1), eight_schools_draws(n, 2 * seed + 2)
    features = density_features(eight_schools.log_density)
    moved = kl_lower_bound(sheared(x), y, features=features, folds=2, seed=seed)
    same = kl_lower_bound(x, y, features=features, folds=2, seed=seed)
    assert abs(same.value) <= 4.0 * same.stderr
    assert moved.value - 3.0 * moved.stderr > same.value + 3.0 * same.stderr
    assert moved.value - 3.0 * moved.stderr > 0.0
    assert moved.value < kl + 4.0 * moved.stderr
