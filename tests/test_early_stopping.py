"""Early stopping: which iterate is kept, evaluations that leave no trace, states that resume or are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import avbvi
from avbvi.early_stopping import EarlyStopping
from avbvi.errors import CheckpointError, NonFiniteError
from avbvi.guides import ADVERSARIAL
from models.encoders import GaussianEncoder, MLPBody
from models.vaes import VAE


class Point(nn.Module):
    """One parameter."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))


def fed(early: EarlyStopping, point: Point, figures: list[float]) -> list[bool]:
    """Each figure belongs to a value of the parameter: its number, from 1."""
    answers = []
    for i, figure in enumerate(figures, 1):
        point.value.data.fill_(float(i))
        answers.append(early.update(figure))
    return answers


# -- which figure is the best, and when to stop -----------------------------------------------------------------


def test_it_stops_after_as_many_failures_in_a_row_as_it_has_patience() -> None:
    early = EarlyStopping(point := Point(), patience=3)
    answers = fed(early, point, [5.0, 6.0, 7.0, 4.0, 4.0, 4.5, 4.25, 1.0, 0.0])
    assert answers == [False] * 6 + [True] * 3
    # The seventh figure was the third failure; those after it count no more. A tie is no improvement.
    assert (early.best, early.best_at, early.count) == (4.0, 4, 7)
    early.restore()
    assert float(point.value.detach()) == 4.0


def test_patience_of_one_stops_at_the_first_failure() -> None:
    early = EarlyStopping(point := Point(), patience=1)
    assert fed(early, point, [3.0, 2.0, 2.5]) == [False, False, True]


def test_the_iterate_of_a_descent_that_overshoots_the_truth_is_found() -> None:
    # Descent from 0 to the mean of the training data, 1: w_k = 1 - 0.9^k. The validation data have mean 0.8, which
    # the descent comes nearest to at k = 15: 1 - 0.9^15 = 0.794, 1 - 0.9^16 = 0.815.
    point = Point()
    early = EarlyStopping(point, patience=4)
    optimizer = torch.optim.SGD(point.parameters(), lr=0.1)
    for _ in range(1000):
        optimizer.zero_grad()
        (0.5 * (point.value - 1.0).square()).sum().backward()
        optimizer.step()
        if early.validate(lambda: (point.value - 0.8).square().sum()):
            break
    assert (early.count, early.best_at) == (19, 15)
    early.restore()
    assert float(point.value.detach()) == pytest.approx(1.0 - 0.9**15, rel=1e-6)
    assert early.best == pytest.approx((0.2 - 0.9**15) ** 2, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_no_improvement(bad: float) -> None:
    early = EarlyStopping(point := Point(), patience=2)
    with pytest.raises(NonFiniteError, match=r"the first figure is .*nothing to go back to"):
        early.update(bad)
    assert early.count == 0
    assert fed(early, point, [3.0, bad, 2.0, bad, bad]) == [False, False, False, False, True]
    early.restore()
    assert float(point.value.detach()) == 3.0
    assert early.best == 2.0


def test_a_run_that_broke_down_comes_back() -> None:
    early = EarlyStopping(point := Point(2.0), patience=2)
    early.validate(lambda: point.value.sum())
    point.value.data.fill_(math.nan)
    assert not early.validate(lambda: point.value.sum())
    assert early.validate(lambda: point.value.sum())
    early.restore()
    assert float(point.value.detach()) == 2.0


# -- what is kept -------------------------------------------------------------------------------------------------


def test_parameters_and_buffers_of_all_modules_come_back_in_place() -> None:
    first, second = nn.BatchNorm1d(3), Point()
    early = EarlyStopping([first, second], patience=2)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
    first(torch.randn(5, 3))
    before = [t.clone() for module in (first, second) for t in module.state_dict().values()]
    early.update(torch.tensor(1.0, requires_grad=True))
    first(torch.randn(5, 3))  # moves the running moments
    (first.weight.sum() + second.value.sum()).backward()
    optimizer.step()
    early.update(2.0)
    now = [t.clone() for module in (first, second) for t in module.state_dict().values()]
    assert sum(not torch.equal(a, b) for a, b in zip(before, now, strict=True)) == 5
    early.restore()
    after = [t for module in (first, second) for t in module.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    # The optimiser still holds these very parameters; and the copy is not moved along with them.
    optimizer.step()
    assert not torch.equal(second.value, before[-1])
    early.restore()
    assert torch.equal(second.value, before[-1])


def test_a_guide_comes_back_with_its_density() -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    guide = avbvi.AVBGuide(model, sampler=avbvi.MLPSampler((4,)), adversary=avbvi.MLPAdversary((4,)))
    guide.setup()
    guide.stage.fill_(ADVERSARIAL)
    early = EarlyStopping(guide, patience=1)
    z = torch.randn(5, 2)
    before = guide.get_posterior().log_prob(z)
    early.update(1.0)
    for p in guide.parameters():
        p.data.add_(0.1)
    assert not torch.equal(guide.get_posterior().log_prob(z), before)
    early.restore()
    assert torch.equal(guide.get_posterior().log_prob(z), before)


# -- evaluations leave no trace -----------------------------------------------------------------------------------


def test_an_evaluation_has_no_dropout_no_gradients_and_the_same_noise_each_time() -> None:
    network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 1)))
    network[2].eval()  # one part had another mode
    early = EarlyStopping(network, patience=9, seed=4)
    seen: list[Tensor] = []

    def figure() -> Tensor:
        assert not torch.is_grad_enabled()
        assert not any(part.training for part in network.modules())
        seen.append(torch.rand(2))
        return network(torch.ones(4, 3)).square().mean() + torch.rand(())

    random = torch.get_rng_state()
    early.validate(figure)
    best = early.best
    torch.randn(3)
    assert not early.validate(figure)
    assert early.best_at == 1
    assert early.best == best
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], torch.rand(2, generator=torch.Generator().manual_seed(4)))
    torch.set_rng_state(random)
    early.validate(figure)
    assert torch.equal(torch.get_rng_state(), random)
    assert [part.training for part in network.modules()] == [True, True, True, False, False, False]


def test_modes_and_random_state_come_back_from_an_error() -> None:
    early = EarlyStopping(network := Point(), patience=1)
    random = torch.get_rng_state()

    def figure() -> float:
        torch.rand(3)
        raise KeyError("x")

    with pytest.raises(KeyError):
        early.validate(figure)
    assert network.training
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random)
    assert early.count == 0


def test_an_svi_run_is_the_same_with_and_without_validation() -> None:
    x = torch.bernoulli(torch.full((12, 6), 0.4))

    def run(validated: bool) -> tuple[list[Tensor], list[float]]:
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        vae = VAE(nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.3), nn.Linear(8, 6)), 2)
        encoder = GaussianEncoder(MLPBody(6, (8,)), 2)
        loss = Trace_ELBO(max_plate_nesting=1)
        svi = SVI(vae.model, encoder.guide, pyro.optim.Adam({"lr": 1e-2}), loss=loss)
        early = EarlyStopping([vae, encoder], patience=50)
        losses = []
        for _ in range(10):
            losses.append(svi.step(x))
            if validated:
                early.validate(lambda: loss.loss(vae.model, encoder.guide, x[:4]))
        assert early.count == (10 if validated else 0)
        return [p.detach().clone() for p in (*vae.parameters(), *encoder.parameters())], losses

    (with_it, losses), (without, others) = run(True), run(False)
    assert losses == others
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))


# -- state --------------------------------------------------------------------------------------------------------

FIGURES = [5.0, 3.0, 4.0, 2.0, math.nan, 2.5, 6.0, 1.0]


@pytest.mark.parametrize("done", range(len(FIGURES) + 1))
def test_a_resumed_record_decides_as_an_uninterrupted_one(done: int, tmp_path: Path) -> None:
    whole = EarlyStopping(point := Point(), patience=3)
    expected = fed(whole, point, FIGURES)
    begun = EarlyStopping(point := Point(), patience=3)
    fed(begun, point, FIGURES[:done])
    torch.save(begun.state_dict(), tmp_path / "state.pt")
    resumed = EarlyStopping(point := Point(-1.0), patience=3)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert float(point.value.detach()) == -1.0
    answers = []
    for i, figure in enumerate(FIGURES[done:], done + 1):
        point.value.data.fill_(float(i))
        answers.append(resumed.update(figure))
    assert answers == expected[done:]
    assert (resumed.count, resumed.best, resumed.best_at) == (whole.count, whole.best, whole.best_at)
    resumed.restore()
    assert float(point.value.detach()) == 4.0


def test_a_state_is_a_copy() -> None:
    early = EarlyStopping(point := Point(1.0), patience=3)
    early.update(1.0)
    state = early.state_dict()
    other = EarlyStopping(Point(), patience=3)
    other.load_state_dict(state)
    state["kept"][0]["value"].fill_(9.0)
    for it in (early, other):
        it.restore()
        assert float(it.modules[0].value.detach()) == 1.0
    assert float(point.value.detach()) == 1.0


def state(**changes: Any) -> dict[str, Any]:
    early = EarlyStopping(nn.Linear(2, 1), patience=3)
    early.update(1.0)
    early.update(2.0)
    return {**early.state_dict(), **changes}


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        ({}, "not one of an EarlyStopping: it lacks 'patience'"),
        (None, "not one of an EarlyStopping"),
        ({k: v for k, v in state().items() if k != "best"}, "lacks 'best'"),
        (state(patience=4), "patience=4, this one has 3"),
        (state(seed=1), "seed=1, this one has 0"),
        (state(best_at=3), "best figure has number 3 of 2"),
        (state(best_at=0), "best figure has number 0 of 2"),
        (state(count="2"), "best figure has number 1 of '2'"),
        (state(best=math.nan), "best figure of 2 is nan"),
        (state(best=None), "best figure of 2 is None"),
        (state(kept=[]), "parameters of 0 modules, expected those of 1"),
        (state(kept=None), "parameters of NoneType modules"),
        (state(kept=[None]), r"of modules\[0\] it has NoneType"),
        (state(kept=[{}]), r"does not fit modules\[0\] \(Linear\): only the module has 'bias'"),
        (state(kept=[nn.Linear(2, 1).state_dict() | {"more": torch.ones(1)}]), "only the state has 'more'"),
        (state(kept=[nn.Linear(3, 1).state_dict()]), r"'weight' has shape \(1, 3\), expected \(1, 2\)"),
        (state(kept=[nn.Linear(2, 1).state_dict() | {"weight": "x"}]), r"'weight' has shape None"),
    ],
)
def test_a_foreign_or_damaged_state_is_refused_and_changes_nothing(damaged: Any, words: str) -> None:
    early = EarlyStopping(nn.Linear(2, 1), patience=3)
    early.update(7.0)
    with pytest.raises(CheckpointError, match=words):
        early.load_state_dict(damaged)
    assert (early.count, early.best, early.best_at) == (1, 7.0, 1)
    early.restore()


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"modules must be a torch.nn.Module or a list of them, found str"):
        EarlyStopping("vae")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"modules\[1\] must be a torch.nn.Module, found method"):
        EarlyStopping([Point(), Point().parameters])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="modules must have parameters or buffers to be kept, found none"):
        EarlyStopping([nn.ReLU()])
    with pytest.raises(ValueError, match="found none"):
        EarlyStopping([])
    with pytest.raises(ValueError, match="patience must be positive, found 0"):
        EarlyStopping(Point(), patience=0)
    with pytest.raises(TypeError, match="patience must be an integer"):
        EarlyStopping(Point(), patience=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be at least 0"):
        EarlyStopping(Point(), seed=-1)
    with pytest.raises(TypeError, match="seed must be an integer, found None"):
        EarlyStopping(Point(), seed=None)  # type: ignore[arg-type]
    early = EarlyStopping(point := Point())
    with pytest.raises(ValueError, match=r"restore\(\) needs a figure to go back to, found none"):
        early.restore()
    with pytest.raises(TypeError, match=r"figure must be a number, found Tensor of dtype torch.float32 and shape"):
        early.update(torch.ones(2))
    with pytest.raises(TypeError, match="figure must be callable, found float"):
        early.validate(1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="figure must be a number, found NoneType"):
        early.validate(lambda: None)  # type: ignore[arg-type, return-value]
    early.update(1.0)
    point.more = nn.Parameter(torch.ones(1))
    with pytest.raises(CheckpointError, match=r"does not fit modules\[0\] \(Point\): only the module has 'more'"):
        early.restore()
