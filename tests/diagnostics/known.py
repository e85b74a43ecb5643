"""A Gaussian posterior with all of its figures in closed form, and guides placed on it or beside it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from avbvi.guides import AVBGuide
from avbvi.log_density import LogDensity
from avbvi.samplers import ResidualSampler
from avbvi.targets import UnconstrainedTarget
from avbvi.trunks import AffineTrunk, Trunk

LOC = torch.tensor([1.0, -2.0])
SCALE_TRIL = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
LOG_Z = -3.7


def log_density(z: Tensor) -> Tensor:
    return MultivariateNormal(LOC, scale_tril=SCALE_TRIL).log_prob(z) + LOG_Z


def guide_at(
    loc: Tensor, scale_tril: Tensor, trunk: Trunk | None = None, log_prob: object = log_density
) -> tuple[AVBGuide, UnconstrainedTarget]:
    """A guide whose trunk is the Gaussian N(loc, L L^T), exactly for an affine one."""
    guide = AVBGuide(LogDensity(log_prob, event_shape=(2,)), trunk=trunk or AffineTrunk(), sampler=ResidualSampler())
    guide.setup()
    guide.part("trunk").start(loc, scale_tril)
    target = guide.target()
    assert target is not None
    return guide, target


def set_sampler(guide: AVBGuide, shift: Tensor, scale: float) -> None:
    """Make the sampler's base draws exactly N(shift, scale^2 I)."""
    sampler = guide.part("sampler")
    with torch.no_grad():
        sampler.linear.weight.mul_(scale)
        sampler.network.leave[-1].bias.copy_(torch.cat([shift, torch.full((2,), math.log(scale))]))
