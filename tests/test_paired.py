"""Differences between paired samples."""

import math

import pytest
import torch

from avbvi.paired import paired_changes


def test_standard_errors_are_those_over_repetitions():
    # Pairs of a skewed coordinate and a normal one, correlated between before and after.
    def pairs() -> tuple[torch.Tensor, torch.Tensor]:
        common = torch.randn(300, 2, dtype=torch.float64)
        x, y = (0.8 * common + 0.6 * torch.randn(300, 2, dtype=torch.float64) for _ in range(2))
        return torch.cat([x, x[:, :1].exp()], -1), torch.cat([y, y[:, :1].exp()], -1) + 0.1

    repetitions = [paired_changes(*pairs()) for _ in range(600)]
    shift, shift_stderr, ratio, ratio_stderr, correlation = (torch.stack(x) for x in zip(*repetitions, strict=True))
    # The spread over 600 repetitions is known to 3 %; .15 allows four of that and the skew's bias at n = 300.
    torch.testing.assert_close(
        shift_stderr[:, :2].mean(0) / shift[:, :2].std(0), torch.ones(2).double(), atol=0.15, rtol=0
    )
    torch.testing.assert_close(
        ratio_stderr[:, :2].mean(0) / ratio[:, :2].std(0), torch.ones(2).double(), atol=0.15, rtol=0
    )
    assert bool((shift_stderr[:, 2].mean() / shift[:, 2].std() - 1).abs() < 0.15)
    assert float(correlation[:, :2].mean()) == pytest.approx(0.64, abs=4 * (1 - 0.64**2) / math.sqrt(300 * 1200))
    assert float(shift[:, :2].mean()) == pytest.approx(0.1, abs=4 * math.sqrt(2 * 0.36 / 300 / 1200))
