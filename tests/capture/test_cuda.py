"""CUDA graphs themselves: only where there is a device."""

from __future__ import annotations

import pytest
import torch

import avbvi
from avbvi import AdversarialELBO, AffineTrunk, AVBGuide
from avbvi.capture.graphs import WARM_UP, CapturedStep, CudaBackend
from benchmarks import gpu
from models import eight_schools

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")


def test_replays_go_on_where_the_warm_up_ended() -> None:
    """A step with random numbers: replayed it gives those that it gives by itself."""
    found = []
    for captures in (False, True):
        torch.manual_seed(0)
        total, count = torch.zeros(3, device=CUDA), torch.zeros((), device=CUDA)

        def step(total: torch.Tensor = total, count: torch.Tensor = count) -> None:
            total.add_(torch.randn(3, device=CUDA))
            count.add_(1.0)

        captured = CapturedStep(step, CudaBackend(CUDA))
        for _ in range(8):
            captured.run() if captures else step()
        assert float(count) == 8.0
        assert captured.replays == (8 - WARM_UP if captures else 0)
        found.append(total)
    torch.testing.assert_close(found[1], found[0])


def test_a_step_that_waits_is_seen_and_runs_all_the_same() -> None:
    count = torch.zeros((), device=CUDA)
    captured = CapturedStep(lambda: count.fill_(float(count) + 1.0), CudaBackend(CUDA))
    for _ in range(6):
        captured.run()
    assert float(count) == 6.0
    assert captured.reason is not None
    assert captured.replays == 0


def test_a_capture_that_fails_leaves_the_device_usable() -> None:
    """A copy from ordinary memory, which no inspection before the capture is made to see."""
    backend, count = CudaBackend(CUDA), torch.zeros((), device=CUDA)
    with pytest.raises(RuntimeError):
        backend.capture(lambda: count.add_(float(count)))
    backend.renew()
    captured = CapturedStep(lambda: count.add_(1.0), backend)
    for _ in range(6):
        captured.run()
    assert float(count) == 6.0
    assert captured.replays == 6 - WARM_UP


@pytest.mark.parametrize("case", gpu.CASES)
def test_captured_steps_have_the_losses_of_uncaptured_ones(case: str) -> None:
    checks = list(gpu.same_losses(case, CUDA, True))
    assert all(check.passed for check in checks), [str(check) for check in checks]


def test_a_fit_replays_its_steps_and_is_reproducible() -> None:
    y, sigma = eight_schools.paper_data()

    def run() -> avbvi.Posterior:
        guide = AVBGuide(eight_schools.model, trunk=AffineTrunk())
        elbo = AdversarialELBO(num_particles=64, pretrain_steps=10)
        return avbvi.fit(
            eight_schools.model, y, sigma, guide=guide, elbo=elbo, steps=100, seed=0, device="cuda", progress=False
        )

    first, second = run(), run()
    assert " steps replayed" in first.run.execution
    assert first.run.history["elbo"] == pytest.approx(second.run.history["elbo"], rel=1e-4)
