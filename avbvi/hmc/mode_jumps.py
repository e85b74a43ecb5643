"""Jumps between known modes: a Metropolis transition that carries chains where HMC would take too long to go."""

from __future__ import annotations

import torch
from torch import Tensor

from ..starts import LaplaceModes
from .kernel import ChainState, Jump, LogDensityFunction, accept, evaluate

#: States per dimension that a mode's covariance is estimated from, at least.
_STATES_PER_DIMENSION = 10


class ModeJump(Jump):
    """Affine maps between Gaussians at the modes, z' = m_j + L_j L_i^-1 (z - m_i), as Metropolis proposals.

    A state belongs to the mode i whose weighted Gaussian is the highest there; j is drawn among the others by weight.
    The move is accepted with probability min(1, p(z') |L_j| w_i (1 - w_i) / (p(z) |L_i| w_j (1 - w_j))) and
    only if z' belongs to j, so that it is its own reverse. In the warm-up means, covariances and weights follow the
    chains: a Laplace approximation alone is often too narrow for the proposals to be accepted.

    Args:
        modes: at least two of them.

    Raises:
        ValueError: fewer than two modes.

    Source: Tjelmeland and Hegland (1998), Mode jumping proposals in MCMC, Scand. J. Statistics 25; Pompe, Holmes and
    Latuszynski (2020), A framework for adaptive MCMC targeting multimodal distributions, Annals of Statistics 48(5).
    """

    def __init__(self, modes: LaplaceModes) -> None:
        if len(modes.locs) < 2:
            raise ValueError(f"modes must hold at least two modes to jump between, found {len(modes.locs)}")
        self.locs: Tensor = modes.locs
        self.covariances: Tensor = modes.covariances
        self.log_weights: Tensor = modes.log_weights
        self._refactor()
        self._forget()

    def _refactor(self) -> None:
        # A weight too small would make its mode a place of no return.
        self.log_weights = torch.log_softmax(self.log_weights.clamp_min(-7.0), 0)
        self.factors: Tensor = torch.linalg.cholesky(self.covariances)
        self._log_dets = self.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        weights = self.log_weights.exp()
        self._moves = weights.expand(len(weights), -1).clone().fill_diagonal_(0.0)
        # log(w_i (1 - w_i)), the part of the proposal's probability that does not cancel.
        self._log_leave = self.log_weights + torch.log1p(-weights)

    def _forget(self) -> None:
        m, dim = self.locs.shape
        self._count = self.locs.new_zeros(m, dtype=torch.float64)
        self._sum = self._count.new_zeros(m, dim)
        self._square = self._count.new_zeros(m, dim, dim)

    def assign(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The mode (n,) that each z (n, dim) belongs to, and z in each mode's whitened coordinates (M, n, dim)."""
        centred = z - self.locs[:, None]
        white = torch.linalg.solve_triangular(self.factors, centred.mT, upper=False).mT
        log_density = self.log_weights[:, None] - self._log_dets[:, None] - 0.5 * white.square().sum(-1)
        return log_density.argmax(0), white

    def step(
        self, log_prob: LogDensityFunction, state: ChainState, generator: torch.Generator | None
    ) -> tuple[ChainState, Tensor]:
        here, white = self.assign(state.z)
        there = torch.multinomial(self._moves[here], 1, generator=generator).squeeze(1)
        r = white[here, torch.arange(len(here), device=here.device)]
        proposed = self.locs[there] + torch.einsum("nij,nj->ni", self.factors[there], r)
        end = evaluate(log_prob, proposed)
        returns = (
            (self.assign(proposed)[0] == there) & torch.isfinite(end.log_prob) & torch.isfinite(end.gradient).all(-1)
        )
        log_ratio = (
            end.log_prob - state.log_prob
            + self._log_dets[there] - self._log_dets[here]
            + self._log_leave[here] - self._log_leave[there]
        )  # fmt: skip
        probability = torch.where(returns, log_ratio.clamp_max(0.0).exp(), 0.0)
        return accept(state, end, probability, generator)[0], probability

    def observe(self, states: Tensor) -> None:
        here, _ = self.assign(states)
        member = torch.nn.functional.one_hot(here, len(self.locs)).double()
        centred = states.double() - self.locs.double()[:, None]
        self._count += member.sum(0)
        self._sum += torch.einsum("nm,mni->mi", member, centred)
        self._square += torch.einsum("nm,mni,mnj->mij", member, centred, centred)

    def update(self) -> None:
        count = self._count.clamp_min(1.0)[:, None]
        shift = self._sum / count
        covariance = self._square / count[:, None] - shift[:, :, None] * shift[:, None, :]
        enough = self._count >= _STATES_PER_DIMENSION * self.locs.shape[1]
        usable = enough & (torch.linalg.cholesky_ex(covariance.to(self.locs))[1] == 0)
        self.locs = torch.where(usable[:, None], (self.locs + shift).to(self.locs), self.locs)
        self.covariances = torch.where(usable[:, None, None], covariance.to(self.locs), self.covariances)
        self.log_weights = (self._count + 1.0).log().to(self.locs)
        self._refactor()
        self._forget()
