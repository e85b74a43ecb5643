"""Games: one adversary each, and the two samples that it learns to tell apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

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


class JointContrast(NamedTuple):
    """A law r that takes the place of v, which it is nearer to u than: what adaptive contrast is to joint laws.

    Attributes:
        sample: draws pairs from r, given a minibatch's :class:`JointDraws`.
        log_ratio: log r - log v (B,) at pairs, which densities tell.

    Source: this project's, after Adaptive Contrast of AVB (Mescheder, Nowozin and Geiger 2017), section 4.
    """

    sample: Sample
    log_ratio: Callable[[JointDraws, Pairs], Tensor]


def encoded(draws: JointDraws) -> Pairs:
    """q(x) q(z | x)."""
    return draws.encoded


def decoded(draws: JointDraws) -> Pairs:
    """p(z) p(x | z)."""
    return draws.decoded


def encoded_simulations(draws: JointDraws) -> Pairs:
    """p(x) q(z | x)."""
    return draws.encoded_simulations


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

    With a contrast r it is told u from r, and log u - log v is what it learns of log u - log r, plus log r - log v.

    Args:
        adversary: the network, with its objective.
        sees: what it sees of a pair.
        upper: draws pairs of u, given a minibatch's :class:`JointDraws`.
        lower: draws pairs of v.
        lr: its learning rate.
        contrast: r; ``None`` leaves all to the adversary.
        needed: whether to raise where r has no density that can be evaluated, instead of doing without it.

    Raises:
        TypeError: an adversary of another kind.

    Source: AS-VAE (Pu et al. 2017), eq. 5 to 7; AVB (Mescheder, Nowozin and Geiger 2017), Prop. 1.
    """

    def __init__(
        self,
        adversary: Adversary,
        sees: View,
        upper: Sample,
        lower: Sample,
        lr: float,
        *,
        contrast: JointContrast | None = None,
        needed: bool = False,
    ) -> None:
        instance("adversary", adversary, sees.kind, f"{sees.what}, a {sees.kind.__name__}")
        if sees.kind is Adversary and isinstance(adversary, ConditionalAdversary):
            raise TypeError(
                f"adversary must be {sees.what}, found {type(adversary).__name__}, which sees x beside z; use "
                "ResidualAdversary(target_hint=False)"
            )
        self.adversary: Adversary = adversary
        self.sees: View = sees
        self.upper: Sample = upper
        self.lower: Sample = lower
        self.lr = lr
        self.contrast = contrast
        self.needed: bool = needed
        self.adam: AdversaryAdam | None = None

    def build(self, draws: JointDraws) -> None:
        """Create the adversary's parameters, with dtype and device of the data of ``draws``, and its optimiser.

        Raises:
            ValueError: it was built for pairs of other widths.
        """
        pairs = Pairs(draws.x, draws.prior)
        self.sees.build(self.adversary, pairs)
        if self.adam is not None:
            return
        if self.contrast is not None:
            try:
                self.contrast.log_ratio(draws, pairs)
            except ModelError:
                if self.needed:
                    raise
                self.contrast = None
        self.adversary.to(device=pairs.x.device, dtype=pairs.x.dtype)
        self.adam = AdversaryAdam(list(self.adversary.parameters()), self.lr)

    def log_ratio(self, pairs: Pairs, draws: JointDraws | None = None) -> Tensor:
        """Learned log u - log v at pairs, (B,); differentiable in the pairs alone, without dropout.

        Args:
            pairs: where, x (B, n) and z (B, dim).
            draws: any of the model and guide, of as many data (``loss.draws(model, guide, x)``); needed with a
                contrast.

        Raises:
            ValueError: there are no draws where they are needed.
        """
        if self.contrast is not None and draws is None:
            raise ValueError("draws must be given where a contrast has a density: loss.draws(model, guide, x)")
        adversary = self.adversary
        training = adversary.training
        adversary.eval()
        fixed = {name: p.detach() for name, p in adversary.named_parameters()}
        t: Tensor = functional_call(adversary, fixed, self.sees.inputs(pairs))
        adversary.train(training)
        learned = adversary.objective.log_ratio(t)
        return learned if self.contrast is None or draws is None else learned + self.contrast.log_ratio(draws, pairs)

    def loss(self, draws: JointDraws) -> Tensor:
        """The adversary's loss, a scalar, on ``draws`` of both, to be differentiated in its parameters."""
        adversary = self.adversary.train()
        upper, lower = self.upper(draws), (self.lower if self.contrast is None else self.contrast.sample)(draws)
        n = len(upper.x)
        # One pass for both, as either half costs as much as the whole where networks are small.
        both = Pairs(torch.cat([upper.x, lower.x]).detach(), torch.cat([upper.z, lower.z]).detach())
        with torch.enable_grad():
            t = adversary(*self.sees.inputs(both))
            return adversary.objective.loss(t[:n], t[n:])

    def step(self, draws: JointDraws, factor: float) -> bool:
        """One step of the adversary at ``factor`` times its rate; False, and no step, where draws are not finite."""
        assert self.adam is not None
        return self.adam.move(self.loss(draws), factor)

    def state_dict(self) -> dict[str, Any]:
        """Adversary and optimiser."""
        adam = None if self.adam is None else self.adam.state_dict()
        return {"adversary": self.adversary.state_dict(), "adam": adam}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise unless this built game can take a ``state``.

        Raises:
            CheckpointError: it is damaged, or that of another adversary.
        """
        assert self.adam is not None
        check_state("adversary", self.adversary, state["adversary"])
        self.adam.check_state(state["adam"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the ``state`` that :meth:`state_dict` gave, of a game that is built."""
        assert self.adam is not None
        self.adversary.load_state_dict(state["adversary"])
        self.adam.load_state_dict(state["adam"])
