"""The bound on gradients: its recursion, and what a single long gradient can do under it."""

import math

import pytest
import torch

from avbvi.gradients import GradientBound, explain_non_finite


def test_the_bound_follows_its_recursion() -> None:
    bound = GradientBound(longest=3.0, decay=0.5)
    # First norm sets the mean; then the weights are min(1/2, (1 + n) / (10 + n)) of the mean before.
    assert bound.factor(2.0) == 1.0
    assert bound.mean == 2.0
    assert bound.factor(60.0) == pytest.approx(0.1)  # 3 * 2 of 60
    mean = (2 / 11) * 2.0 + (9 / 11) * 6.0
    assert bound.mean == pytest.approx(mean)
    assert bound.factor(1.0) == 1.0
    assert bound.mean == pytest.approx((3 / 12) * mean + (9 / 12) * 1.0)


def test_gradients_are_shortened_together() -> None:
    bound = GradientBound(longest=10.0)
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert bound.apply(gradients)
    assert torch.equal(gradients[0], torch.tensor([3.0, 0.0]))  # the first one is the measure
    long = [1e6 * g for g in gradients]
    assert bound.apply(long)
    norm = math.sqrt(sum(float(g.square().sum()) for g in long))
    assert norm == pytest.approx(10.0 * 5.0, rel=1e-5)
    assert float(long[0][0] / long[1][0, 0]) == pytest.approx(3.0 / 4.0)  # direction kept


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused_and_leaves_the_mean(bad: float) -> None:
    bound = GradientBound()
    bound.apply([torch.ones(4)])
    before = bound.state_dict()
    assert not bound.apply([torch.tensor([1.0, bad])])
    assert bound.state_dict() == before


def test_a_lasting_change_of_scale_is_followed() -> None:
    """A hundredfold scale, up or down, is the new measure within a few hundred steps."""
    bound = GradientBound()
    for _ in range(500):
        bound.factor(1.0)
    steps = 0
    while bound.factor(100.0) < 1.0:
        steps += 1
    assert 5 < steps < 60
    for _ in range(500):
        bound.factor(1.0)
    assert bound.factor(100.0) < 0.5


def test_one_huge_gradient_does_not_halt_adam() -> None:
    """Without the bound Adam stands still for about a thousand steps after it; with it, next to nothing is lost."""

    def distance(bound: GradientBound | None, spike: float) -> float:
        x = torch.nn.Parameter(torch.tensor([5.0]))
        adam = torch.optim.Adam([x], lr=0.02, betas=(0.5, 0.999))
        for step in range(600):
            x.grad = x.detach() * (spike if step == 5 else 1.0)
            if bound is not None:
                bound.apply([x.grad])
            adam.step()
        return float(x.detach().abs())

    undisturbed = distance(None, 1.0)
    # A tenfold gradient adds 100 * (1 - beta2) = .1 to a second moment of about .5: a tenth of the speed.
    assert distance(GradientBound(), 1e8) < undisturbed + 0.1 * (5.0 - undisturbed)
    assert distance(None, 1e8) > 0.5 * 5.0


def test_state_is_plain_and_restored() -> None:
    bound, other = GradientBound(), GradientBound()
    for norm in (1.0, 5.0, 2.0):
        bound.factor(norm)
    other.load_state_dict(bound.state_dict())
    assert [other.factor(x) for x in (40.0, 1.0, 90.0)] == [bound.factor(x) for x in (40.0, 1.0, 90.0)]


@pytest.mark.parametrize("options", [{"longest": 1.0}, {"decay": 0.0}, {"decay": 1.0}, {"longest": math.nan}])
def test_settings_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        GradientBound(**options)


def test_the_explanation_says_what_and_why() -> None:
    assert explain_non_finite("the loss is nan").startswith("the loss is nan: the log-density or its gradient")
