"""Lower precision reaches the networks alone, and leaves a fit's figures where they are."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import avbvi
from avbvi import AdversarialELBO, AffineTrunk, AVBGuide, Schedule
from avbvi.diagnostics import Verdict
from avbvi.precision import Precision, networks_in, networks_of
from avbvi.training import Trainer

ROUNDING = 2.0**-8  # of bfloat16


class Seen(nn.Linear):
    """Notes the dtype of its products."""

    def forward(self, x: Tensor) -> Tensor:
        result = super().forward(x)
        self.dtype = result.dtype
        return result


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(Seen(3, 4), nn.Tanh())
        self.others = nn.ModuleList([Seen(4, 2)])

    def forward(self, x: Tensor) -> Tensor:
        return self.others[0](self.first(x))


def test_networks_run_in_bfloat16_and_return_float32() -> None:
    holder, x = Holder(), torch.randn(50, 3)
    expected = holder(x)
    networks = networks_in(holder)
    assert networks == [holder.first, holder.others[0]]
    with Precision(torch.bfloat16).applied(networks, x):
        found = holder(x.requires_grad_())
        (slope,) = torch.autograd.grad(found.sum(), x)
        assert not torch.is_autocast_enabled("cpu")
    assert holder.first[0].dtype == holder.others[0].dtype == torch.bfloat16
    assert found.dtype == slope.dtype == torch.float32
    assert 0.0 < float((found - expected).detach().abs().max()) < 8 * ROUNDING
    assert torch.equal(holder(x), expected)  # nothing is left behind
    assert holder.first[0].dtype == torch.float32


def test_a_pass_that_fails_leaves_no_autocast_behind() -> None:
    layer = nn.Linear(3, 4)
    with Precision(torch.bfloat16).applied([layer], torch.zeros(())):
        with pytest.raises(RuntimeError):
            layer(torch.ones(2, 5))
        assert not torch.is_autocast_enabled("cpu")
        assert layer(torch.ones(2, 3)).dtype == torch.float32


def test_tf32_is_set_within_and_restored() -> None:
    before = torch.get_float32_matmul_precision()
    with Precision(tf32=True).applied([], torch.zeros(())):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before == "highest"


def test_what_is_called_in_a_guide_and_a_model() -> None:
    """Not the model itself, nor trunk and contrast: their densities stay as they are."""
    decoder = nn.Linear(2, 3)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(pyro.module("decoder", decoder)(z), 1.0).to_event(1), obs=x)

    guide = AVBGuide(model, trunk=avbvi.FlowTrunk(1, (8,))).setup(torch.zeros(3))
    sampler, adversary = guide.part("sampler"), guide.part("adversary")
    assert networks_of(guide, model) == [sampler.network, sampler.linear, adversary.network, decoder]


def normal(z: Tensor) -> Tensor:
    return -0.5 * (z @ torch.linalg.inv(COVARIANCE) * z).sum(-1)


COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 2.0]])
LOG_Z = math.log(2 * math.pi) + 0.5 * math.log(1.0 * 2.0 - 0.36)


@pytest.mark.parametrize("capture", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_fit_in_bfloat16_is_as_good(capture: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A normal target: standard deviations within 5 %, mean within .1 sd, ELBO within .03 nats of log Z."""
    monkeypatch.setattr(Trainer, "_verdict", lambda self: Verdict("ok", []))
    guide = AVBGuide(avbvi.LogDensity(normal, (2,)), trunk=AffineTrunk())
    elbo = AdversarialELBO(num_particles=128, pretrain_steps=20, schedule=Schedule(anneal=0.0))
    posterior = avbvi.fit(
        avbvi.LogDensity(normal, (2,)),
        guide=guide,
        elbo=elbo,
        steps=150,
        seed=100,
        progress=False,
        capture=capture,
        precision=Precision(torch.bfloat16),
    )
    draws = posterior.sample(20_000)["z"]
    sd = COVARIANCE.diagonal().sqrt()
    torch.testing.assert_close(draws.std(0) / sd, torch.ones(2), atol=0.05, rtol=0.0)
    torch.testing.assert_close(draws.mean(0) / sd, torch.zeros(2), atol=0.1, rtol=0.0)
    late = posterior.run.history["elbo"][-5:]
    assert sum(late) / 5 == pytest.approx(LOG_Z, abs=0.03)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"Precision\(autocast=\.\.\.\) must be torch\.bfloat16 or None.*float16"):
        Precision(torch.float16)
    with pytest.raises(
        TypeError, match=r"Precision\(autocast=\.\.\.\) must be torch\.bfloat16 or None, found str 'bf16'"
    ):
        Precision("bf16")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tf32"):
        Precision(tf32=1)  # type: ignore[arg-type]
    with (
        pytest.raises(ValueError, match=r"autocast is for float32 parameters, found torch\.float64"),
        Precision(torch.bfloat16).applied([], torch.zeros((), dtype=torch.float64)),
    ):
        pass
    with pytest.raises(TypeError, match="precision must be a Precision"):
        avbvi.fit(avbvi.LogDensity(normal, (2,)), precision="bf16", progress=False)  # type: ignore[arg-type]
