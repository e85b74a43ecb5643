"""Judgements by two processes: those of one, or of each part by itself."""

import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import avbvi
from avbvi import distributed
from avbvi.annealed import GaussianStart
from avbvi.divergences import neighbours
from avbvi.divided.judges import divided_evidence, divided_hmc
from avbvi.hmc import run_hmc
from tests.processes import Processes, Raised

DATA, CHAINS = 64, 400


def answers(found: list[Any]) -> list[Any]:
    for answer in found:
        if isinstance(answer, Raised):
            raise answer
    return found


def samples(dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 2500, dim, generator=generator, dtype=torch.float64)
    return x, 1.3 * y


def neighbours_of(dim: int) -> dict[str, Any]:
    """k-NN divergence and entropy; how many queries were searched for in this process."""
    searched = []
    names = ("_by_tree", "by_blocks")
    originals = {name: getattr(neighbours, name) for name in names}

    def counted(original: Any, queries: Tensor, *args: Any, **kwargs: Any) -> Any:
        searched.append(len(queries))
        return original(queries, *args, **kwargs)

    x, y = samples(dim)
    with pytest.MonkeyPatch.context() as patch, distributed.together():
        for name in names:
            patch.setattr(neighbours, name, partial(counted, originals[name]))
        return {"kl": tuple(avbvi.knn_kl(x, y)), "searched": searched[:2]}


@pytest.mark.parametrize("dim", [3, 8])
def test_neighbours_are_divided_by_queries(dim: int, processes: Processes) -> None:
    first, second = answers(processes(neighbours_of, dim))
    whole = tuple(avbvi.knn_kl(*samples(dim)))
    assert first["kl"] == second["kl"] == pytest.approx(whole, rel=1e-12)
    # Both searches of the whole sample, among itself and in the other.
    assert first["searched"] == second["searched"] == [1250, 1250]


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def start(x: Tensor) -> GaussianStart:
    return GaussianStart(x[:, None] * 0.7, torch.full((len(x), 1), 0.6, dtype=x.dtype))


def evidence(n: int = DATA) -> Any:
    x = torch.linspace(-2.0, 2.0, n, dtype=torch.float64)
    anneal = partial(
        avbvi.annealed_importance_sampling,
        model,
        start=start,
        seed=4,
        chains=3,
        leapfrog_steps=3,
        temperatures=avbvi.SigmoidTemperatures(12),
        progress=False,
    )
    with distributed.together():
        return divided_evidence(anneal, x)


def test_annealed_chains_are_divided_by_data(processes: Processes) -> None:
    one, (first, second) = evidence(), answers(processes(evidence))
    for name in ("log_weights", "draws", "acceptance"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        torch.testing.assert_close(getattr(first, name), getattr(one, name), rtol=1e-9, atol=1e-9)
    assert first.seconds == second.seconds
    # And both are right: x ~ N(0, 1 + 1/4).
    x = torch.linspace(-2.0, 2.0, DATA, dtype=torch.float64)
    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x)
    assert abs(float((first.log_evidence - exact).mean())) < 5.0 * first.mean.stderr


def test_few_data_are_refused(processes: Processes) -> None:
    for found in processes(evidence, 20):
        assert isinstance(found, Raised)
        assert found.kind == "ValueError"
        assert "groups of 32 data" in found.message


def log_prob(z: Tensor) -> Tensor:
    return -0.5 * ((z - 1.0) / 0.5).square().sum(-1)


def hmc() -> Any:
    run = partial(run_hmc, log_prob, draws=5, warmup=40)
    states = torch.randn(CHAINS, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with distributed.together():
        rank = distributed.rank()
        divided = divided_hmc(run, states, seed=6)
        seeds = torch.randint(2**62, (distributed.world_size(),), generator=torch.Generator().manual_seed(6))
    rows = slice(CHAINS // 2 * rank, CHAINS // 2 * (rank + 1))
    alone = run(states[rows], generator=torch.Generator().manual_seed(int(seeds[rank])))
    return divided, alone


def test_hmc_is_divided_by_chains(processes: Processes) -> None:
    (first, own_first), (second, own_second) = answers(processes(hmc))
    for name in ("draws", "log_prob", "acceptance", "diverging"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert torch.equal(getattr(first, name), torch.cat([getattr(own_first, name), getattr(own_second, name)]))
    assert first.gradient_evaluations == own_first.gradient_evaluations + own_second.gradient_evaluations
    assert first.step_size == second.step_size == own_first.step_size != own_second.step_size
    last = first.draws[:, -1]  # independent from chain to chain
    assert float((last.mean(0) - 1.0).abs().max()) < 5.0 * 0.5 / math.sqrt(CHAINS)
