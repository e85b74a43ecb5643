"""Batched HMC: a run that tunes itself finds the truth and says when it does not; a short one removes local errors."""

import math

import pytest
import scipy.stats
import torch

from avbvi.hmc import DenseMass, DiagonalMass, evaluate, hmc_step, run_hmc, short_hmc


def gaussian(sd: torch.Tensor):
    return lambda z: -0.5 * (z / sd).square().sum(-1)


def test_leaves_exact_draws_exact():
    sd = torch.tensor([0.1, 1.0, 10.0])
    chains = short_hmc(gaussian(sd), sd * torch.randn(4000, 3), steps=20)
    # Variance of n independent normal draws has standard error sqrt(2 / n) in units of the variance.
    assert ((chains.states.var(0) / sd.square() - 1).abs() < 4 * math.sqrt(2 / 4000)).all()
    assert (chains.states.mean(0).abs() / sd < 4 / math.sqrt(4000)).all()


def test_mends_scale_and_location():
    sd = torch.tensor([0.5, 2.0])
    start = 0.3 + 1.4 * sd * torch.randn(4000, 2)
    chains = short_hmc(gaussian(sd), start, steps=60)
    assert ((chains.states.var(0) / sd.square() - 1).abs() < 4 * math.sqrt(2 / 4000)).all()
    assert (chains.states.mean(0).abs() / sd < 4 / math.sqrt(4000)).all()
    assert 0.7 < chains.acceptance < 0.95


def test_rejects_moves_out_of_the_support():
    def half_normal(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z[:, 0] > 0, -0.5 * z[:, 0].square(), -math.inf)

    chains = short_hmc(half_normal, torch.randn(4000, 1).abs(), steps=20)
    assert (chains.states > 0).all()
    mean = math.sqrt(2 / math.pi)
    assert abs(float(chains.states.mean()) - mean) < 4 * math.sqrt((1 - mean**2) / 4000)


def log_gamma(z: torch.Tensor) -> torch.Tensor:
    """Log-density of the logarithms of independent Gamma(2, 1) variables."""
    return (2.0 * z - z.exp()).sum(-1)


def assert_mean(x: torch.Tensor, expected: float) -> None:
    """The mean of x (chains, draws) within four standard errors by the spread of the chains' means."""
    means = x.double().mean(1)
    assert abs(float(means.mean()) - expected) < 4 * float(means.std()) / math.sqrt(len(means))


SCALES = torch.tensor([1e-3, 1.0, 10.0], dtype=torch.float64)
CORRELATION = torch.tensor([[1.0, -0.99, 0.0], [-0.99, 1.0, 0.1], [0.0, 0.1, 1.0]], dtype=torch.float64)
COVARIANCE = CORRELATION * torch.outer(SCALES, SCALES)
MEAN = torch.tensor([2.0, -3.0, 50.0], dtype=torch.float64)


@pytest.mark.parametrize("mass", [DiagonalMass(), DenseMass()], ids=["diagonal", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_run_finds_a_badly_scaled_correlated_normal(mass, dtype):
    precision = torch.linalg.inv(COVARIANCE).to(dtype)

    def normal(z: torch.Tensor) -> torch.Tensor:
        x = z - MEAN.to(dtype)
        return -0.5 * ((x @ precision) * x).sum(-1)

    start = (MEAN + SCALES * (1.0 + 3.0 * torch.randn(400, 3, dtype=torch.float64))).to(dtype)
    run = run_hmc(normal, start, draws=10, warmup=150, thin=3, mass=mass)
    assert run.draws.shape == (400, 10, 3)
    assert run.draws.dtype == dtype
    assert float(run.rhat().max()) < 1.01 + 0.01  # 1.01, and what 10 draws of 400 chains scatter (four times .0025)
    assert run.divergences == 0
    assert float(run.ess().min()) > (2000 if isinstance(mass, DenseMass) else 400)
    z = torch.linalg.solve_triangular(
        torch.linalg.cholesky(COVARIANCE), (run.draws.double() - MEAN).reshape(-1, 3).mT, upper=False
    ).mT.reshape(400, 10, 3)
    for i in range(3):
        assert_mean(z[:, :, i], 0.0)
        for j in range(i + 1):
            assert_mean(z[:, :, i] * z[:, :, j], float(i == j))
    torch.testing.assert_close(run.log_prob, normal(run.draws.flatten(0, 1)).reshape(400, 10), rtol=1e-3, atol=1e-3)


def test_run_satisfies_steins_identity():
    # E[s_i (z_j - E z_j)] = -1 if i = j, else 0, with s the gradient of the log-density;
    # here of a mixed, skewed target.
    mix = torch.tensor([[1.0, 0.0], [0.8, 0.5]], dtype=torch.float64)
    inverse = torch.linalg.inv(mix)

    def skewed(z: torch.Tensor) -> torch.Tensor:
        return log_gamma(z @ inverse.mT)

    run = run_hmc(skewed, torch.randn(500, 2, dtype=torch.float64), draws=20, warmup=100, thin=2, mass=DenseMass())
    z = run.draws.flatten(0, 1)
    score = evaluate(skewed, z).gradient
    centred = z - mix @ torch.full((2,), 0.42278433509846714, dtype=torch.float64)  # E log Gamma(2, 1) = digamma(2)
    for i in range(2):
        for j in range(2):
            assert_mean((score[:, i] * centred[:, j]).reshape(500, 20), -float(i == j))
    x = torch.linalg.solve(mix, run.draws.mT).mT.exp()
    assert_mean(x[:, :, 0], 2.0)
    assert_mean(x[:, :, 1].square(), 6.0)


def test_run_adapts_to_its_target_acceptance():
    for target in (0.6, 0.9):
        run = run_hmc(log_gamma, torch.randn(500, 5), draws=20, warmup=200, target_acceptance=target)
        p = run.acceptance.clamp_min(0.1)
        assert float(1 / (1 / p).mean()) == pytest.approx(target, abs=0.05)


def test_run_finds_chees_length_for_a_normal():
    # The best jittered length for a standard normal is 2.2467 (see test_hmc_adaptation); leapfrog and noise blur it.
    run = run_hmc(gaussian(torch.ones(6)), torch.randn(500, 6), draws=1, warmup=400, target_acceptance=0.9)
    assert run.trajectory_length == pytest.approx(2.2467, rel=0.2)


def test_truncated_support():
    def half_normal(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z[:, 0] > 0, -0.5 * z[:, 0].square(), -math.inf)

    run = run_hmc(half_normal, torch.rand(1000, 1), draws=20, warmup=100)
    assert bool((run.draws > 0).all())
    assert_mean(run.draws[:, :, 0], math.sqrt(2 / math.pi))
    assert_mean(run.draws[:, :, 0].square(), 1.0)
    assert run.divergences > 0
    assert int(run.diverging.sum()) == run.divergences  # thin = 1: at most one per kept draw
    assert bool((run.acceptance[run.diverging] == 0).all())


def test_flat_density_on_a_box():
    def box(z: torch.Tensor) -> torch.Tensor:
        return torch.where(((z > 0) & (z < 1)).all(-1), 0.0, -math.inf)

    run = run_hmc(box, torch.rand(1000, 2), draws=20, warmup=50, thin=2)
    for i in range(2):
        assert_mean(run.draws[:, :, i], 1 / 2)
        assert_mean(run.draws[:, :, i].square(), 1 / 3)


def test_separated_modes_show_in_rhat():
    def two(z: torch.Tensor) -> torch.Tensor:
        return torch.logaddexp(-0.5 * (z[:, 0] - 20).square(), -0.5 * (z[:, 0] + 20).square())

    start = torch.randn(300, 1)
    start[:100] += 20
    start[100:] -= 20
    run = run_hmc(two, start, draws=20, warmup=50)
    assert float(run.rhat()) > 1.5
    right = run.draws[:, :, 0] > 0
    assert torch.equal(right.any(1), right.all(1))
    # Ranks put shares p and 1 - p of the normal above and below: phi(a) / p and -phi(a) / (1 - p) on average, where
    # Phi(a) = p. That leaves a variance phi(a)^2 / (p (1 - p)) between chains, of 1 in all. What is within them adds to
    # the variance of a chain's mean as much as 4 to 20 independent draws do.
    p = float(right.double().mean())
    between = scipy.stats.norm.pdf(scipy.stats.norm.ppf(p)) ** 2 / (p * (1 - p))
    assert 300 / (between + (1 - between) / 4) < float(run.ess()) < 300 / (between + (1 - between) / 20)


def test_warmup_keeps_the_shares_of_separated_modes():
    for dim in (1, 3):

        def two(z: torch.Tensor) -> torch.Tensor:
            rest = -0.5 * z[:, 1:].square().sum(-1)
            return torch.logaddexp(-0.5 * (z[:, 0] - 20).square(), -0.5 * (z[:, 0] + 20).square()) + rest

        start = torch.randn(200, dim)
        start[:150, 0] += 20
        start[150:, 0] -= 20
        run = run_hmc(two, start, draws=4, warmup=40)
        share = float((run.draws[:, -1, 0] > 0).double().mean())
        # A step as long as the distance of the modes, tried at first, carries a few chains over.
        assert share == pytest.approx(0.75, abs=0.1)


def test_stuck_chains_are_restarted_elsewhere_only_if_wanted():
    def spike(z: torch.Tensor) -> torch.Tensor:
        """A standard normal with a spike 1e-4 wide at 8 that holds next to nothing."""
        return torch.logaddexp(-0.5 * z[:, 0].square(), 5.0 - 0.5 * ((z[:, 0] - 8.0) / 1e-4).square())

    start = torch.randn(400, 1, dtype=torch.float64)
    start[:20] = 8.0
    free = run_hmc(spike, start, draws=4, warmup=60)
    assert float(free.draws.max()) < 6.0
    # So many may be a mode: they are left where they are, or free themselves by a shorter step.
    start[:200] = 8.0
    many = run_hmc(spike, start, draws=4, warmup=60, max_leapfrog_steps=8)
    assert int((many.draws[:, -1, 0] - 8.0).abs().lt(0.01).sum()) >= 190
    start[20:200] = 0.0
    kept = run_hmc(spike, start, draws=4, warmup=60, restart_stuck=False)
    assert int((kept.draws[:, -1, 0] == 8.0).sum()) == 20


def test_same_generator_same_draws_and_the_global_one_untouched():
    def draws(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return run_hmc(log_gamma, torch.zeros(50, 2) + 0.1, draws=4, warmup=20, generator=generator).draws

    before = torch.get_rng_state()
    first = draws(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, draws(3))
    assert not torch.equal(first, draws(4))


def test_fixed_number_of_leapfrog_steps_and_the_count_of_evaluations():
    calls = []

    def counted(z: torch.Tensor) -> torch.Tensor:
        calls.append(len(z))
        return log_gamma(z)

    run = run_hmc(counted, torch.randn(100, 2), draws=4, warmup=20, thin=2, leapfrog_steps=5)
    assert run.leapfrog_steps == 5
    assert run.gradient_evaluations == len(calls)
    assert set(calls) == {100}
    assert run_hmc(log_gamma, torch.randn(50, 2), draws=3, warmup=10, max_leapfrog_steps=1).leapfrog_steps == 1


def test_nothing_is_adapted_after_the_warmup():
    """The kept transitions repeat with the reported settings from the state that the warm-up ended in."""
    start = torch.randn(100, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    run = run_hmc(log_gamma, start, draws=3, warmup=30, leapfrog_steps=4, generator=generator)
    # One more draw of the same run, by hand.
    longer = run_hmc(log_gamma, start, draws=4, warmup=30, leapfrog_steps=4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(longer.draws[:, :3], run.draws)
    by_hand = hmc_step(
        log_gamma,
        evaluate(log_gamma, run.draws[:, -1]),
        step_size=run.step_size,
        leapfrog_steps=4,
        metric=run.metric,
        generator=generator,
    )
    torch.testing.assert_close(by_hand.state.z, longer.draws[:, -1])


def test_arguments_out_of_range():
    z = torch.zeros(10, 2)
    with pytest.raises(ValueError, match=r"-inf.* at 3 of 10 starting points"):
        run_hmc(lambda x: torch.where(torch.arange(10) < 3, -math.inf, 0.0) + x.sum(-1), z, draws=1)
    for bad in (z.long(), z[0], z[:0]):
        with pytest.raises(ValueError, match="states must be floating-point of shape"):
            run_hmc(log_gamma, bad, draws=1)
    for name in ("draws", "thin", "max_leapfrog_steps", "leapfrog_steps"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, found 0"):
            run_hmc(log_gamma, z, **{"draws": 1, name: 0})
    with pytest.raises(ValueError, match="warmup must be at least 0"):
        run_hmc(log_gamma, z, draws=1, warmup=-1)
    with pytest.raises(ValueError, match="target_acceptance must lie between 0 and 1"):
        run_hmc(log_gamma, z, draws=1, target_acceptance=1.0)


def test_few_long_chains():
    run = run_hmc(log_gamma, torch.randn(4, 1), draws=1000, warmup=300)
    x = run.draws[:, :, 0].double().exp().flatten()
    ess = float(run.ess())
    assert ess > 400
    assert float(run.rhat()) < 1.03
    assert abs(float(x.mean()) - 2.0) < 4 * math.sqrt(2.0 / ess)


def test_runs_where_its_states_are(device):
    start = torch.randn(200, 2, device=device)
    run = run_hmc(log_gamma, start, draws=5, warmup=30, mass=DenseMass())
    assert run.draws.device.type == device.type
    assert_mean(run.draws[:, :, 0].exp().cpu(), 2.0)
