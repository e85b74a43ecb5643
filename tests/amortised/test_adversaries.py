"""Adversaries with a context: their formulas, what they start at, and that they find each datum's log q - log r."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from avbvi.adversaries import MLPAdversary
from avbvi.amortised.adversaries import (
    ConditionalAdversary,
    InnerProductAdversary,
    JointAdversary,
)
from avbvi.amortised.convolutional import ConvolutionalAdversary
from avbvi.objectives import SquaredHellinger
from avbvi.parts import rebuild

CONTEXT_DIM, FEATURES, BATCH = 6, 3, 4


def all_adversaries() -> list[ConditionalAdversary]:
    """One of each, with every argument away from its default."""
    return [
        InnerProductAdversary(hidden=(7, 9), slope=0.1, squares=False, log_prior=True, objective=SquaredHellinger()),
        JointAdversary(
            hidden=(7, 7, 5),
            alone=(6,),
            slope=0.1,
            squares=False,
            log_prior=True,
            quadratic=True,
            objective=SquaredHellinger(),
        ),
        ConvolutionalAdversary(
            (1, 2, 3), channels=(4, 5), blocks=1, slope=0.1, squares=False, log_prior=True, objective=SquaredHellinger()
        ),
    ]


ADVERSARIES = pytest.mark.parametrize("index", range(3), ids=[type(a).__name__ for a in all_adversaries()])


def built(adversary: ConditionalAdversary, spread: float = 0.3) -> ConditionalAdversary:
    adversary.build_for(FEATURES, FEATURES, CONTEXT_DIM)
    with torch.no_grad():
        for p in adversary.parameters():
            p.add_(spread * torch.randn_like(p))
    return adversary


@ADVERSARIES
def test_a_batch_is_judged_as_each_datum_alone(index: int) -> None:
    adversary = built(all_adversaries()[index]).double()
    features, context = torch.randn(2, 5, BATCH, FEATURES).double(), torch.randn(BATCH, CONTEXT_DIM).double()
    log_prior = torch.randn(2, 5, BATCH).double()
    together = adversary(features, context, log_prior)
    assert together.shape == (2, 5, BATCH)
    for s, k, b in ((0, 0, 0), (0, 4, 3), (1, 2, 1), (1, 4, 2)):
        alone = adversary(features[s, k, b][None], context[b][None], log_prior[s, k, b][None])[0]
        torch.testing.assert_close(together[s, k, b], alone)


@ADVERSARIES
def test_every_parameter_receives_a_gradient(index: int) -> None:
    adversary = built(all_adversaries()[index])
    context, log_prior = torch.randn(BATCH, CONTEXT_DIM), torch.zeros(8, BATCH)
    t_q = adversary(torch.randn(8, BATCH, FEATURES), context, log_prior)
    t_r = adversary(torch.randn(8, BATCH, FEATURES), context, log_prior)
    adversary.objective.loss(t_q, t_r).backward()
    silent = [n for n, p in adversary.named_parameters() if p.grad is None or not float(p.grad.abs().sum()) > 0.0]
    assert silent == []


@ADVERSARIES
@pytest.mark.parametrize("slope", [None, 0.1], ids=["silu", "leaky"])
def test_gradients_in_latents_and_context_are_right(index: int, slope: float | None) -> None:
    # The joint laws' losses move images through T as well as latents.
    adversary = all_adversaries()[index]
    adversary.slope, adversary.squares = slope, slope is None
    adversary = built(adversary).double()
    features = torch.randn(2, BATCH, FEATURES, dtype=torch.float64, requires_grad=True)
    context = torch.randn(BATCH, CONTEXT_DIM, dtype=torch.float64, requires_grad=True)
    log_prior = torch.randn(2, BATCH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(adversary, (features, context, log_prior))
    grads = torch.autograd.grad(adversary(features, context, log_prior).sum(), (features, context))
    assert all(bool((g != 0.0).all()) for g in grads)


@pytest.mark.parametrize("make", [InnerProductAdversary, JointAdversary], ids=["inner", "joint"])
def test_gradients_in_the_context_pass_through_a_body(make: Any) -> None:
    adversary = built(make(body=nn.Sequential(nn.Linear(CONTEXT_DIM, 5), nn.Tanh()))).double()
    features = torch.randn(2, BATCH, FEATURES, dtype=torch.float64)
    context = torch.randn(BATCH, CONTEXT_DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: adversary(features, x), (context,))


@ADVERSARIES
def test_an_adversary_is_made_again_from_its_configuration(index: int) -> None:
    adversary = built(all_adversaries()[index])
    assert adversary.is_rebuildable
    configuration = json.loads(json.dumps(adversary.configuration()))
    again = rebuild(configuration)
    assert isinstance(again, ConditionalAdversary)
    again.build_for(FEATURES, FEATURES, CONTEXT_DIM)
    assert json.loads(json.dumps(again.configuration())) == configuration
    again.load_state_dict(adversary.state_dict())
    features, context, log_prior = torch.randn(BATCH, FEATURES), torch.randn(BATCH, CONTEXT_DIM), torch.randn(BATCH)
    assert torch.equal(again(features, context, log_prior), adversary(features, context, log_prior))


def test_inner_product_computes_its_formula() -> None:
    adversary = InnerProductAdversary(hidden=(5, 9), squares=False)
    built(adversary)
    features, context = torch.randn(7, BATCH, FEATURES), torch.randn(BATCH, CONTEXT_DIM)

    def network(x: Tensor, layers: nn.Sequential, end: nn.Linear) -> Tensor:
        for layer in (layers[0], layers[2]):
            x = nn.functional.silu(x @ layer.weight.mT + layer.bias)
        return x @ end.weight.mT + end.bias

    a = network(context, adversary.of_context.layers, adversary.context_end)
    b = network(features, adversary.of_features.layers, adversary.features_end)
    expected = torch.einsum("bh,sbh->sb", a, b) / 3.0
    torch.testing.assert_close(adversary(features, context), expected)


@pytest.mark.parametrize(
    "make",
    [InnerProductAdversary, JointAdversary, lambda: ConvolutionalAdversary((1, 2, 3))],
    ids=["inner", "joint", "conv"],
)
def test_squares_of_the_features_are_seen_too(make: Any) -> None:
    adversary = built(make())
    features, context = torch.randn(7, BATCH, FEATURES), torch.randn(BATCH, CONTEXT_DIM)
    seen = torch.cat([features, features**2 / 3.0 - 1.0 / 3.0], -1)
    torch.testing.assert_close(adversary(features, context), adversary.network_output(seen, context))
    assert adversary.dim == 2 * FEATURES


def test_the_inner_product_starts_equally_large_for_any_width() -> None:
    for h in (16, 256, 1024):
        squares = []
        for _ in range(10):
            adversary = InnerProductAdversary(hidden=(32, h))
            adversary.build_for(FEATURES, FEATURES, CONTEXT_DIM)
            t = adversary(torch.randn(50, 8, FEATURES), torch.randn(8, CONTEXT_DIM)).detach()
            squares.append(float(t.square().mean()))
        assert 0.05 < math.sqrt(sum(squares) / len(squares)) < 0.3


@pytest.mark.parametrize("make", [JointAdversary, lambda: ConvolutionalAdversary((1, 2, 3))], ids=["joint", "conv"])
def test_t_starts_at_zero(make: Any) -> None:
    adversary = make()
    adversary.build_for(FEATURES, FEATURES, CONTEXT_DIM)
    t = adversary(torch.randn(5, BATCH, FEATURES), torch.randn(BATCH, CONTEXT_DIM))
    assert torch.count_nonzero(t) == 0


def test_the_joint_adversary_is_a_sum_of_three() -> None:
    adversary = built(JointAdversary(hidden=(5, 5), alone=(4,)))
    features, context = torch.randn(7, BATCH, FEATURES), torch.randn(BATCH, CONTEXT_DIM)
    whole = adversary(features, context).detach()
    with torch.no_grad():
        for p in adversary.joint.parameters():
            p.zero_()
    rest = adversary(features, context).detach()
    assert float((whole - rest).abs().min()) > 0.0
    # What is left is additive: differences between data do not depend on z.
    at_same = adversary(features[:1].expand_as(features), context).detach()
    torch.testing.assert_close(rest - rest[0], (rest - at_same) - (rest[0] - at_same[0]), rtol=1e-4, atol=1e-5)
    shifted = adversary(features[:, :1].expand_as(features), context).detach()
    torch.testing.assert_close(shifted - shifted[0], (shifted - shifted[0])[:, :1].expand_as(shifted))


@ADVERSARIES
def test_log_p_is_taken_off(index: int) -> None:
    adversary = built(all_adversaries()[index])
    features, context = torch.randn(7, BATCH, FEATURES), torch.randn(BATCH, CONTEXT_DIM)
    log_prior = torch.randn(7, BATCH)
    assert adversary.uses_log_prior
    rest = adversary(features, context, log_prior) + log_prior
    expected = adversary.network_output(features, context) - 1.5 * (1.0 + math.log(2.0 * math.pi))
    torch.testing.assert_close(rest, expected)
    # Under a standard normal prior the two terms cancel on average.
    z = torch.randn(20_000, FEATURES)
    log_p = Normal(0.0, 1.0).log_prob(z).sum(-1)
    constant = 0.5 * FEATURES * (1.0 + math.log(2.0 * math.pi))
    assert abs(float((log_p + constant).mean())) < 5.0 * float(log_p.std()) / math.sqrt(20_000)
    with pytest.raises(ValueError, match=r"log_prior=True\) needs the log-density of a prior, found None"):
        adversary(features, context)


def test_log_p_is_not_asked_for_unless_told() -> None:
    for adversary in (InnerProductAdversary(), JointAdversary(), ConvolutionalAdversary((1, 2, 3))):
        built(adversary)
        assert not adversary.uses_log_prior
        features, context = torch.randn(7, BATCH, FEATURES), torch.randn(BATCH, CONTEXT_DIM)
        assert torch.equal(adversary(features, context, torch.ones(7, BATCH)), adversary(features, context))


class Posteriors:
    """q(z | x) = N(x, s(x)^2) in two coordinates, and r = N(0, 1.5^2 I): the log-ratio is known."""

    def __init__(self, n: int) -> None:
        self.context = 2.0 * torch.rand(n, 2) - 1.0
        self.q = Normal(self.context, 0.5 + 0.4 * self.context.flip(-1).abs())
        self.r = Normal(torch.zeros(n, 2), 1.5 * torch.ones(n, 2))

    def log_ratio(self, z: Tensor) -> Tensor:
        return self.q.log_prob(z).sum(-1) - self.r.log_prob(z).sum(-1)


@pytest.mark.parametrize(
    "adversary",
    [
        InnerProductAdversary(hidden=(64, 64)),
        JointAdversary(hidden=(64, 64), alone=(32,), log_prior=True),
        ConvolutionalAdversary((2, 1, 1), channels=(64, 64)),
    ],
    ids=["inner", "joint", "conv"],
)
def test_a_trained_adversary_is_each_datums_log_ratio(adversary: ConditionalAdversary) -> None:
    adversary.build_for(2, 2, 2)
    data, steps, n = Posteriors(6), 400, 64
    optimiser = torch.optim.Adam(adversary.parameters(), lr=1e-2, betas=(0.5, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        z = torch.cat([data.q.sample(torch.Size((n,))), data.r.sample(torch.Size((n,)))])
        t = adversary(z, data.context, data.r.log_prob(z).sum(-1))
        optimiser.zero_grad()
        adversary.objective.loss(t[:n], t[n:]).backward()
        optimiser.step()
        schedule.step()
    z = data.q.sample(torch.Size((1000,)))
    with torch.no_grad():
        error = adversary(z, data.context, data.r.log_prob(z).sum(-1)) - data.log_ratio(z)
    assert float(data.log_ratio(z).std()) > 0.6
    assert float(error.square().mean().sqrt()) < 0.2
    assert float(error.mean(0).abs().max()) < 0.15  # each datum's own KL(q, r)


def test_a_users_body_precedes_the_network_of_x() -> None:
    for make in (InnerProductAdversary, JointAdversary):
        body = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 2), nn.Flatten(1))
        adversary = make(body=body)
        assert not adversary.is_rebuildable
        built(adversary)
        context = torch.randn(BATCH, CONTEXT_DIM)
        torch.testing.assert_close(adversary.seen(context), body(context))
        adversary(torch.randn(3, BATCH, FEATURES), context).square().sum().backward()
        assert float(body[1].weight.grad.abs().sum()) > 0.0
        with pytest.raises(ValueError, match=r"body failed on a context of shape \(2, 5\)"):
            make(body=body).build_for(FEATURES, FEATURES, 5)


def test_contexts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"adversary=MLPAdversary\(\) sees no context"):
        MLPAdversary().build_for(3, 3, 6)
    with pytest.raises(ValueError, match=r"InnerProductAdversary\(\) needs a context"):
        InnerProductAdversary().build_for(3, 3)
    adversary = InnerProductAdversary()
    adversary.build_for(3, 3, 6)
    adversary.build_for(3, 3, 6)
    with pytest.raises(ValueError, match="built for a context of 6 numbers per datum, not 7"):
        adversary.build_for(3, 3, 7)
    with pytest.raises(ValueError, match=r"image_shape=\(1, 2, 2\) has 4 pixels, but the context 6"):
        ConvolutionalAdversary((1, 2, 2)).build_for(3, 3, 6)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (InnerProductAdversary, {"hidden": ()}, "hidden must name at least one layer"),
        (InnerProductAdversary, {"slope": 2.0}, "slope must lie between -1 and 1"),
        (InnerProductAdversary, {"log_prior": "yes"}, "log_prior must be True or False"),
        (JointAdversary, {"alone": (0,)}, r"alone\[0\] must be at least 1"),
        (JointAdversary, {"body": 3}, "body must be a torch.nn.Module"),
        (ConvolutionalAdversary, {"image_shape": (8, 8)}, "image_shape must be channels, height and width"),
        (ConvolutionalAdversary, {"image_shape": (1, 8, 8), "channels": ()}, "channels must name at least one layer"),
        (ConvolutionalAdversary, {"image_shape": (1, 8, 8), "blocks": -1}, "blocks must be at least 0"),
    ],
)
def test_bad_arguments_are_named(make: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make(**arguments)
