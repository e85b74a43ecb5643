"""Annealed chains: unbiased weights in both directions, step sizes from pilots alone, refusal of hopeless starts."""

import math

import pytest
import torch

from avbvi import NonFiniteError
from avbvi.annealed import GaussianStart, LinearTemperatures, PriorStart, SigmoidTemperatures
from avbvi.annealed.chains import BackwardAnnealing, ForwardAnnealing, pilots_for
from avbvi.annealed.noise import Keys
from avbvi.annealed.path import Path
from tests.annealed.known import LinearGaussian


class Skewed:
    """Log-densities of logarithms of Gamma(a, 1) variables times c, each datum with its own a and c: evidence c."""

    dim = 1

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.shape = torch.linspace(0.7, 3.0, batch).double()
        self.log_evidence = torch.linspace(-3.0, 5.0, batch).double()

    def log_joint(self, z: torch.Tensor) -> torch.Tensor:
        z = z.squeeze(-1)
        return self.log_evidence + self.shape * z - z.exp() - torch.lgamma(self.shape)

    def draws(self) -> torch.Tensor:
        return torch.distributions.Gamma(self.shape, 1.0).sample().log()[:, None]


def forward(density, start, betas, *, chains=5, leapfrog_steps=3, seed=0) -> ForwardAnnealing:
    return ForwardAnnealing(
        Path(density, start), betas, chains=chains, leapfrog_steps=leapfrog_steps, target_acceptance=0.65,
        keys=Keys(seed),
    )  # fmt: skip


def finished(annealing):
    while not annealing.finished:
        annealing.advance()
    return annealing


def wide(batch: int) -> GaussianStart:
    # Wider than the targets on both sides, so that weights have a variance.
    return GaussianStart(torch.full((batch, 1), -0.5).double(), torch.full((batch, 1), 9.0).double())


@pytest.mark.parametrize("count", [1, 3, 8])
def test_weights_are_unbiased_however_few_the_temperatures(count):
    density = Skewed(4)
    run = finished(forward(density, wide(4), LinearTemperatures(count).betas(), chains=20_000))
    w = (run.log_weights - density.log_evidence).exp()
    stderr = w.std(0) / math.sqrt(20_000)
    assert stderr.max() < 0.03
    assert ((w.mean(0) - 1.0) / stderr).abs().max() < 4.0


def test_more_temperatures_lower_the_variance_of_the_weights():
    density = Skewed(4)
    spread = []
    for n in (2, 16, 128):
        run = finished(forward(density, wide(4), SigmoidTemperatures(n).betas(), chains=2000))
        spread.append(float((run.log_weights - density.log_evidence).exp().var(0).mean()))
    assert spread[1] < 0.8 * spread[0]
    assert spread[2] < 0.8 * spread[1]


def test_backward_weights_are_unbiased_for_the_reciprocal():
    # Every datum is the same; each has a posterior draw of its own, which its chains share.
    batch = 20_000
    density = Skewed(1)
    density.batch, density.shape = batch, density.shape.expand(batch).clone()
    density.log_evidence = density.log_evidence.expand(batch)
    # Narrower than the target, so that start / target, which these weights are made of, is bounded.
    start = GaussianStart(torch.full((batch, 1), -0.7).double(), torch.full((batch, 1), 0.2).double())
    ahead = finished(forward(density, start, SigmoidTemperatures(4).betas(), chains=1))
    back = finished(BackwardAnnealing(ahead, density.draws()))
    inverse = (density.log_evidence - back.log_weights).exp().flatten()
    stderr = float(inverse.std()) / math.sqrt(batch)
    assert 0.001 < stderr < 0.05
    assert abs(float(inverse.mean()) - 1.0) < 4.0 * stderr


def test_last_states_are_posterior_draws_if_weighted():
    density = Skewed(3)
    run = finished(forward(density, wide(3), SigmoidTemperatures(30).betas(), chains=20_000))
    weight = torch.softmax(run.log_weights, 0)
    x = run.state.z.squeeze(-1).exp()
    mean = (weight * x).sum(0)
    stderr = (weight.square() * (x - mean).square()).sum(0).sqrt()
    assert ((mean - density.shape) / stderr).abs().max() < 4.0


def test_step_sizes_aim_at_the_target_and_differ_by_datum():
    density = LinearGaussian.simulated(3, 30, 8, dtype=torch.float64)
    loc, covariance = density.posterior()
    # The third datum's start is far too narrow, so that its steps, in units of the start, have to be longer.
    scale = torch.tensor([1.0, 1.0, 0.04]).double()
    start = GaussianStart(loc, covariance * scale[:, None, None])
    run = finished(forward(density, start, SigmoidTemperatures(300).betas(), chains=20, leapfrog_steps=5))
    assert abs(float(run.acceptance[150:].mean()) - 0.65) < 0.06
    steps = run.step_sizes.by_temperature[-1]
    assert float(steps[2] / steps[:2].mean()) > 1.5


def test_step_sizes_depend_on_no_chain_but_the_pilots():
    density = Skewed(4)
    runs = [forward(density, wide(4), LinearTemperatures(20).betas()) for _ in range(2)]
    runs[1].state = runs[1].path.evaluate(runs[1].state.z + 3.0)
    for run in runs:
        finished(run)
    assert not torch.equal(runs[0].log_weights, runs[1].log_weights)
    assert torch.equal(runs[0].step_sizes.by_temperature, runs[1].step_sizes.by_temperature)


def test_few_data_have_more_pilots():
    assert [pilots_for(b) for b in (1, 8, 32, 1000)] == [32, 4, 1, 1]
    assert [pilots_for(b, 100) for b in (1, 8, 32)] == [1, 1, 1]


@pytest.mark.parametrize(("first", "batch"), [(0, 70), (32, 38), (40, 10), (5, 1)])
def test_step_sizes_are_learned_by_groups_of_data_with_neighbouring_numbers(first, batch):
    from avbvi.annealed.chains import StepSizes
    from avbvi.annealed.path import PathState

    z = torch.zeros(1, batch, 2, dtype=torch.float64)
    state = PathState(z, z[..., 0], z[..., 0], z, z)
    steps = StepSizes(3, state, 0.6, first)
    probability = torch.rand(1, batch, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = steps.log_step.clone()
    steps.learn(probability)
    number = torch.arange(first, first + batch)
    for i in range(batch):
        group = probability[0, number // 32 == number[i] // 32]
        gain = 0.6 * min(1.0, math.sqrt(len(group) / 32))
        expected = gain * (group.mean() - 0.6) + 0.05 * (probability[0, i] - group.mean())
        torch.testing.assert_close(steps.log_step[i] - before[i], expected)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_restored_run_goes_on_bit_for_bit(direction):
    density = LinearGaussian.simulated(5, 4, 2)
    betas = SigmoidTemperatures(12).betas()

    def begin(seed):
        torch.manual_seed(seed)
        run = forward(density, PriorStart(density), betas, seed=seed)
        if direction == "forward":
            return run
        draws = density.posterior()[0].float()
        return BackwardAnnealing(finished(run), draws)

    whole, first, second = begin(0), begin(0), begin(0)
    finished(whole)
    for _ in range(5):
        first.advance()
    second.restore(first.saved())
    finished(second)
    assert torch.equal(second.log_weights, whole.log_weights)
    assert torch.equal(second.state.z, whole.state.z)
    assert torch.equal(second.acceptance, whole.acceptance)


class Constant:
    """A joint log-density that is the same everywhere."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.batch, self.dim = values, len(values), 2

    def log_joint(self, z):
        return self.values + 0.0 * z.sum(-1)


@pytest.mark.parametrize(
    ("value", "words"),
    [(-math.inf, "joint log-density is -inf or NaN.* data 1:"), (math.nan, "data 1:"), (math.inf, r"\+inf .* data 1$")],
)
def test_hopeless_starts_are_refused_and_name_the_data(value, words):
    density = Constant(torch.tensor([0.0, value, -3.0]))
    start = GaussianStart(torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(NonFiniteError, match=words):
        forward(density, start, LinearTemperatures(3).betas())


def test_a_density_of_a_wrong_shape_is_refused():
    class Summed(Constant):
        def log_joint(self, z):
            return super().log_joint(z).sum(-1)

    start = GaussianStart(torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="one number by chain and datum"):
        forward(Summed(torch.zeros(3)), start, LinearTemperatures(3).betas())
