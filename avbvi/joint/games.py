"""Games: one adversary each, and the two samples that it learns to tell apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import functional_call

from ..adversaries import Adversary
from ..amortised.adversaries import ConditionalAdversary
from ..arguments import instance
from ..errors import ModelError
from ..module_states import check_state
from ..optimisers import AdversaryAdam
from .draws import JointDraws, Pairs

Sample = Callable[[JointDraws], Pairs]
#: The part of a log-ratio that densities tell, at pairs (B,).
Known = Callable[[JointDraws, Pairs], Tensor]
#: How fast the mean of what is known is followed.
FOLLOW = 0.02


def encoded(draws: JointDraws) -> Pairs:
    """q(x) q(z | x)."""
    return draws.encoded


def decoded(draws: JointDraws) -> Pairs:
    """p(z) p(x | z)."""
    return draws.decoded


def encoder_marginals(draws: JointDraws) -> Pairs:
    """q(x) q(z)."""
    return draws.encoder_marginals


def model_marginals(draws: JointDraws) -> Pairs:
    """p(x) p(z)."""
    return draws.model_marginals


def data_and_prior(draws: JointDraws) -> Pairs:
    """q(x) p(z): either part is as good as the other where only one is seen."""
    return Pairs(draws.x, draws.prior)


def encoding_ratio(draws: JointDraws, pairs: Pairs) -> Tensor:
    """log q(z | x) - log p(z)."""
    return draws.log_encoding_ratio_at(pairs)


def likelihood(draws: JointDraws, pairs: Pairs) -> Tensor:
    """log p(x | z)."""
    return draws.log_likelihood_at(pairs)


class View(Protocol):
    """What an adversary sees of a pair."""

    what: str
    kind: type[Adversary]

    def build(self, adversary: Adversary, pairs: Pairs) -> None:
        """Create the adversary's parameters for pairs of these widths."""

    def inputs(self, pairs: Pairs) -> tuple[Tensor, ...]:
        """The arguments of its ``forward``."""


class SeesPairs:
    """T(x, z)."""

    what = "an adversary of pairs, T(x, z)"
    kind: type[Adversary] = ConditionalAdversary

    def build(self, adversary: Adversary, pairs: Pairs) -> None:
        dim = pairs.z.shape[-1]
        adversary.build_for(dim, dim, pairs.x.shape[-1])

    def inputs(self, pairs: Pairs) -> tuple[Tensor, ...]:
        return pairs.z, pairs.x


class SeesLatents:
    """T(z)."""

    what = "an adversary of latents, T(z)"
    kind: type[Adversary] = Adversary

    def build(self, adversary: Adversary, pairs: Pairs) -> None:
        adversary.build_for(pairs.z.shape[-1], pairs.z.shape[-1])

    def inputs(self, pairs: Pairs) -> tuple[Tensor, ...]:
        return (pairs.z,)


class SeesData:
    """T(x)."""

    what = "an adversary of data, T(x)"
    kind: type[Adversary] = Adversary

    def build(self, adversary: Adversary, pairs: Pairs) -> None:
        adversary.build_for(pairs.x.shape[-1], pairs.x.shape[-1])

    def inputs(self, pairs: Pairs) -> tuple[Tensor, ...]:
        return (pairs.x,)


class Game:
    """An adversary that learns log u - log v from draws of u and of v.

    Where densities tell a part k of it, log u - log v = k - c + T, with c the running mean of k over u: the adversary
    only has to learn what they leave.

    Args:
        adversary: the network, with its objective.
        sees: what it sees of a pair.
        upper, lower: u and v.
        lr: its learning rate.
        known: k; ``None`` leaves all to the adversary.
        needed: whether to raise where k can't be evaluated, instead of doing without.

    Raises:
        TypeError: an adversary of another kind.
    """

    def __init__(
        self,
        adversary: Adversary,
        sees: View,
        upper: Sample,
        lower: Sample,
        lr: float,
        *,
        known: Known | None = None,
        needed: bool = False,
    ) -> None:
        instance("adversary", adversary, sees.kind, f"{sees.what}, a {sees.kind.__name__}")
        if sees.kind is Adversary and isinstance(adversary, ConditionalAdversary):
            raise TypeError(
                f"adversary must be {sees.what}, found {type(adversary).__name__}, which sees x beside z; use "
                "ResidualAdversary(target_hint=False)"
            )
        self.adversary, self.sees = adversary, sees
        self.upper, self.lower = upper, lower
        self.lr = lr
        self.known, self.needed = known, needed
        self._mean, self._looks = 0.0, 0
        self.adam: AdversaryAdam | None = None

    def build(self, draws: JointDraws) -> None:
        """Create the adversary's parameters, with dtype and device of the data, and its optimiser.

        Raises:
            ValueError: it was built for pairs of other widths.
        """
        pairs = Pairs(draws.x, draws.prior)
        self.sees.build(self.adversary, pairs)
        if self.adam is not None:
            return
        if self.known is not None and not self.needed:
            try:
                self.known(draws, pairs)
            except ModelError:
                self.known = None
        self.adversary.to(device=pairs.x.device, dtype=pairs.x.dtype)
        self.adam = AdversaryAdam(list(self.adversary.parameters()), self.lr)

    def log_ratio(self, pairs: Pairs, draws: JointDraws | None = None) -> Tensor:
        """Learned log u - log v at pairs, (B,); differentiable in the pairs alone, without dropout.

        Args:
            pairs: where.
            draws: any of the model and guide, of as many data (``loss.draws(model, guide, x)``); needed where densities
                tell a part.

        Raises:
            ValueError: there are no draws where they are needed.
        """
        if self.known is not None and draws is None:
            raise ValueError("draws are needed, as densities tell a part of the log-ratio: loss.draws(model, guide, x)")
        adversary = self.adversary
        training = adversary.training
        adversary.eval()
        fixed = {name: p.detach() for name, p in adversary.named_parameters()}
        t: Tensor = functional_call(adversary, fixed, self.sees.inputs(pairs))
        adversary.train(training)
        if self.known is not None and draws is not None:
            t = t + self.known(draws, pairs) - self._mean
        return adversary.objective.log_ratio(t)

    def loss(self, draws: JointDraws) -> Tensor:
        """The adversary's loss on draws of both, to be differentiated in its parameters."""
        adversary = self.adversary.train()
        upper, lower = self.upper(draws), self.lower(draws)
        n = len(upper.x)
        # One pass for both, as either half costs as much as the whole where networks are small.
        both = Pairs(torch.cat([upper.x, lower.x]).detach(), torch.cat([upper.z, lower.z]).detach())
        offset = None if self.known is None else self._offset(self.known, draws, upper, lower)
        with torch.enable_grad():
            t = adversary(*self.sees.inputs(both))
            if offset is not None:
                t = t + offset
            return adversary.objective.loss(t[:n], t[n:])

    @torch.no_grad()
    def _offset(self, known: Known, draws: JointDraws, upper: Pairs, lower: Pairs) -> Tensor:
        """What is known at both samples, less its mean over the upper one, which is followed."""
        k = [known(draws, pairs) for pairs in (upper, lower)]
        mean = float(k[0].mean())
        if math.isfinite(mean):
            self._looks += 1
            self._mean += max(FOLLOW, 1.0 / self._looks) * (mean - self._mean)
        return torch.cat(k) - self._mean

    def step(self, draws: JointDraws, factor: float) -> bool:
        """One step of the adversary at ``factor`` times its rate; False, and no step, where draws are not finite."""
        assert self.adam is not None
        return self.adam.move(self.loss(draws), factor)

    def state_dict(self) -> dict[str, Any]:
        """Adversary, optimiser, and the mean of what densities tell."""
        adam = None if self.adam is None else self.adam.state_dict()
        return {"adversary": self.adversary.state_dict(), "adam": adam, "mean": self._mean, "looks": self._looks}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise unless this built game can take a state.

        Raises:
            CheckpointError: it is damaged, or that of another adversary.
        """
        assert self.adam is not None
        check_state("adversary", self.adversary, state["adversary"])
        self.adam.check_state(state["adam"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, of a game that is built."""
        assert self.adam is not None
        self.adversary.load_state_dict(state["adversary"])
        self.adam.load_state_dict(state["adam"])
        self._mean, self._looks = state["mean"], state["looks"]
