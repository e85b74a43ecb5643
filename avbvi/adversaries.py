"""Adversaries T: networks that learn log q - log r by telling the two samples apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .arguments import flag, integer, integers, number
from .objectives import Logistic, Objective, checked_objective
from .parts import Part, ResidualNetwork, asinh, mlp

__all__ = ["Adversary", "Hint", "Logistic", "MLPAdversary", "Objective", "ResidualAdversary"]


class Hint(NamedTuple):
    """What a fixed target tells an adversary about a draw, in base coordinates.

    Attributes:
        log_ratio: log p - log r (*batch,), in nats: at the optimum q = p / Z, T is just that less log Z.
        score: the gradient of log p (*batch, dim), or ``None`` where the adversary does not ask for it.
    """

    log_ratio: Tensor
    score: Tensor | None = None


class Adversary(Part):
    """Base class of adversaries.

    ``forward`` takes the contrast's features (*batch, feature_dim) and, when ``uses_target`` is set and
    the target is fixed, a :class:`Hint`; it returns T (*batch,).

    Args:
        objective: how T is trained and read (:mod:`avbvi.objectives`).

    Raises:
        TypeError: ``objective`` is no :class:`~avbvi.objectives.Objective`.

    Example:
        An adversary of one's own: a quadratic form of the features.

        >>> import torch, avbvi
        >>> class Quadratic(avbvi.Adversary):
        ...     def _build(self, dim):
        ...         self.matrix = torch.nn.Parameter(torch.zeros(dim, dim))
        ...     def forward(self, features, hint=None):
        ...         return ((features @ self.matrix) * features).sum(-1)
        >>> adversary = Quadratic()
        >>> adversary.build_for(feature_dim=2, base_dim=2)  # a guide does so at its set-up
        >>> adversary(torch.ones(5, 2)).shape
        torch.Size([5])
    """

    #: Width of the context, of an amortised guide's adversary.
    context_dim: int | None = None

    def __init__(self, *, objective: Objective = Logistic()) -> None:
        super().__init__()
        self.objective: Objective = checked_objective(objective)

    def build_for(self, feature_dim: int, base_dim: int, context_dim: int | None = None) -> None:
        """Create the parameters for features and base coordinates of these widths.

        Args:
            feature_dim: width of the contrast's features.
            base_dim: width of the base coordinates, of the hint's score too.
            context_dim: width of a datum's context, in an amortised guide.

        Raises:
            ValueError: this adversary sees no context, and there is one.
        """
        if context_dim is not None:
            raise ValueError(
                f"adversary={type(self).__name__}() sees no context, so that it can't tell one datum's posterior from "
                "another's; with a sampler that takes a context use InnerProductAdversary() or JointAdversary()"
            )
        self.base_dim = base_dim
        self.build(feature_dim)

    @property
    def is_rebuildable(self) -> bool:
        return self.objective.is_rebuildable and super().is_rebuildable

    @property
    def uses_target(self) -> bool:
        """Whether T wants a :class:`Hint`; it costs evaluations of log p in the adversary's steps."""
        return False

    @property
    def uses_score(self) -> bool:
        """Whether the hint is to hold the score; it costs second derivatives of log p in the sampler's steps."""
        return False

    def observe(self, log_ratio: Tensor) -> None:
        """Told the hint's ``log_ratio`` (n,) at fresh draws of q during training, for adversaries that centre it."""

    def forward(self, features: Tensor, hint: Hint | None = None) -> Tensor:
        """T (*batch,) of features (*batch, feature_dim) and, where it is asked for and there is one, the ``hint``."""
        raise NotImplementedError


class ResidualAdversary(Adversary):
    """A residual network whose output starts at zero, so that without a hint T starts at 0 (q = r).

    With ``target_hint`` T also holds a learnable multiple, 1 at the start, of s(log p - log r - c), where c is
    the running mean over q and s(x) = 20 tanh(x / 20): the network only has to learn how far q is from
    the target. With ``score`` the network sees asinh(grad log p / 2) beside the features.

    Args:
        hidden: width of the blocks.
        blocks: number of residual blocks, each of two layers.
        target_hint: give T the hint. Leave it out when log p is expensive; it is never used while the
            target itself is being learned.
        score: give the network the score of the target as well.
        slope: negative slope of leaky ReLU units (the paper's 0.2); ``None`` takes smooth SiLU units,
            whose gradient in z, all that the sampler sees of T, is smooth too.
        objective: see :class:`Adversary`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ``hidden`` below 1, ``blocks`` below 0, or ``slope`` outside (-1, 1).

    Example:
        >>> import torch, avbvi
        >>> adversary = avbvi.ResidualAdversary(hidden=16, blocks=1, score=False)
        >>> adversary.build_for(feature_dim=2, base_dim=2)
        >>> hint = avbvi.Hint(log_ratio=torch.tensor([0.0, 1.0]))
        >>> adversary(torch.zeros(2, 2), hint).tolist()  # the network starts at 0: T is the squashed hint
        [0.0, 0.999...]

    Source: AVB (Mescheder, Nowozin and Geiger 2017), sections 3 and 5.1, with the blocks of He, Zhang, Ren and Sun
    (2016), Deep residual learning for image recognition, CVPR; hint and score are this project's (docs/decisions.md).
    """

    center: Tensor
    centered: Tensor

    def __init__(
        self,
        hidden: int = 64,
        blocks: int = 2,
        target_hint: bool = True,
        score: bool = True,
        slope: float | None = None,
        *,
        objective: Objective = Logistic(),
    ) -> None:
        super().__init__(objective=objective)
        self.hidden: int = integer("hidden", hidden, 1)
        self.blocks: int = integer("blocks", blocks, 0)
        self.target_hint: bool = flag("target_hint", target_hint)
        self.score: bool = flag("score", score)
        self.slope: float | None = None if slope is None else number("slope", slope)
        if slope is not None and not abs(float(slope)) < 1.0:
            raise ValueError(f"slope must lie between -1 and 1, found {slope}")

    @property
    def uses_target(self) -> bool:
        return self.target_hint

    @property
    def uses_score(self) -> bool:
        return self.target_hint and self.score

    def _activation(self) -> nn.Module:
        return nn.SiLU() if self.slope is None else nn.LeakyReLU(self.slope)

    def _build(self, dim: int) -> None:
        self.network: ResidualNetwork = ResidualNetwork(
            dim + (self.base_dim if self.uses_score else 0),
            1,
            hidden=self.hidden,
            blocks=self.blocks,
            activation=self._activation,
        )
        if self.target_hint:
            # Stored as a tenth, so that Adam moves the multiple ten times as fast as a weight.
            self.hint_tenth: nn.Parameter = nn.Parameter(torch.tensor(0.1))
            self.register_buffer("center", torch.zeros(()))
            self.register_buffer("centered", torch.tensor(False))

    @torch.no_grad()
    def observe(self, log_ratio: Tensor) -> None:
        if not self.target_hint:
            return
        mean = log_ratio.mean()
        weight = torch.where(self.centered, 0.05, 1.0)
        self.center.copy_(torch.lerp(self.center, mean, weight.to(mean)))
        self.centered.fill_(True)

    def forward(self, features: Tensor, hint: Hint | None = None) -> Tensor:
        x = features
        if self.uses_score:
            # A model whose own parameters are being learned gives no hint: the score's place stays empty.
            score = None if hint is None else hint.score
            seen = features.new_zeros(*x.shape[:-1], self.base_dim) if score is None else asinh(0.5 * score)
            x = torch.cat([x, seen], -1)
        t: Tensor = self.network(x).squeeze(-1)
        if self.target_hint and hint is not None:
            t = t + 10.0 * self.hint_tenth * 20.0 * torch.tanh((hint.log_ratio - self.center) / 20.0)
        return t


class MLPAdversary(Adversary):
    """A plain fully connected network without hint, for comparisons and tests.

    Args:
        hidden: widths of the hidden layers.
        objective: see :class:`Adversary`.

    Raises:
        TypeError: ``hidden`` is no tuple of integers, or ``objective`` no :class:`~avbvi.Objective`.
        ValueError: a width is less than 1.

    Example:
        >>> import torch, avbvi
        >>> adversary = avbvi.MLPAdversary(hidden=(16,))
        >>> adversary.build_for(feature_dim=3, base_dim=3)
        >>> adversary(torch.randn(4, 3)).tolist()  # T starts at 0: q = r
        [0.0, 0.0, 0.0, 0.0]
    """

    def __init__(self, hidden: tuple[int, ...] = (64, 64), *, objective: Objective = Logistic()) -> None:
        super().__init__(objective=objective)
        self.hidden: tuple[int, ...] = integers("hidden", hidden, "widths of the hidden layers")

    def _build(self, dim: int) -> None:
        self.network: nn.Sequential = mlp([dim, *self.hidden, 1], nn.SiLU, zero_last=True)

    def forward(self, features: Tensor, hint: Hint | None = None) -> Tensor:
        t: Tensor = self.network(features).squeeze(-1)
        return t
