"""Adversaries T(x, z) of amortised guides (AVB, section 5.2 and supplement IV)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..adversaries import Adversary
from ..arguments import flag, integers, share
from ..objectives import Logistic, Objective
from ..parts import zero_
from .networks import (
    ContextNetwork,
    InjectedNetwork,
    body_width,
    checked_body,
    checked_layers,
    checked_slope,
)
from .quadratic import QuadraticForm


class ConditionalAdversary(Adversary):
    """Base class of adversaries that see a datum's context x beside the features u of z.

    A subclass defines :meth:`network_output` and creates its networks in ``_build(width)``. With ``squares`` they see
    (u^2 - 1) / 3 beside u, which is 0 on average where q and r agree in scale. With ``log_prior`` the output is
    T = f(x, z) - log p(z) - c, where c = dim / 2 (1 + log 2 pi), minus the mean of log p(z) under a standard normal
    prior: with the prior as contrast f only has to learn log q(z | x) up to that constant (supplement, celebA).

    Args:
        squares: show the squares of the features too.
        log_prior: take log p(z) off the output; for ``PriorContrast`` alone.
        objective: see :class:`~avbvi.adversaries.Adversary`.

    Raises:
        TypeError: a flag is no bool, or ``objective`` no :class:`~avbvi.Objective`.
    """

    context_dim: int

    def __init__(self, squares: bool = True, log_prior: bool = False, *, objective: Objective = Logistic()) -> None:
        super().__init__(objective=objective)
        self.squares: bool = flag("squares", squares)
        self.log_prior: bool = flag("log_prior", log_prior)

    @property
    def uses_log_prior(self) -> bool:
        """Whether :meth:`forward` wants log p(z)."""
        return self.log_prior

    def build_for(self, feature_dim: int, base_dim: int, context_dim: int | None = None) -> None:
        if context_dim is None:
            raise ValueError(
                f"adversary={type(self).__name__}() needs a context; without one, as for a single posterior, use "
                "ResidualAdversary()"
            )
        if self.dim is not None and context_dim != self.context_dim:
            raise ValueError(
                f"{type(self).__name__} was built for a context of {self.context_dim} numbers per datum, not "
                f"{context_dim}; give each guide its own part"
            )
        self.context_dim = context_dim
        self.base_dim = base_dim
        self.build((2 if self.squares else 1) * feature_dim)

    def network_output(self, features: Tensor, context: Tensor) -> Tensor:
        """f: features (*S, B, width), squares included, and context (B, context_dim) to (*S, B)."""
        raise NotImplementedError

    def forward(  # type: ignore[override]  # an amortised guide asks with a context where others ask with a hint
        self, features: Tensor, context: Tensor, log_prior: Tensor | None = None
    ) -> Tensor:
        """T (*S, B) of features (*S, B, feature_dim), context (B, context_dim) and ``log_prior``, log p(z) (*S, B).

        Raises:
            ValueError: the adversary uses log p(z), which is not there.
        """
        if self.squares:
            features = torch.cat([features, (features.square() - 1.0) / 3.0], -1)
        t = self.network_output(features, context)
        if self.log_prior:
            if log_prior is None:
                raise ValueError(
                    f"{type(self).__name__}(log_prior=True) needs the log-density of a prior, found None; use "
                    "log_prior=False for a model without one"
                )
            t = t - log_prior - 0.5 * self.base_dim * (1.0 + math.log(2.0 * math.pi))
        return t


class EncodingAdversary(ConditionalAdversary):
    """Base class of adversaries that see the context through a network of it alone, which may be a user's own module.

    Args:
        body: a module (B, context_dim) -> (B, width) that precedes the adversary's own network of x.
        slope: negative slope of leaky ReLU units (0 is ReLU); ``None`` takes smooth SiLU units, whose gradient in z,
            all that the sampler sees of T, is smooth too.
        squares, log_prior, objective: see :class:`ConditionalAdversary`.
    """

    def __init__(
        self,
        body: nn.Module | None,
        slope: float | None,
        squares: bool,
        log_prior: bool,
        *,
        objective: Objective = Logistic(),
    ) -> None:
        super().__init__(squares, log_prior, objective=objective)
        self.body: nn.Module | None = checked_body(body)
        self.slope: float | None = checked_slope(slope)

    @property
    def is_rebuildable(self) -> bool:
        return self.body is None and super().is_rebuildable

    def build(self, dim: int) -> None:
        if self.dim is None:
            self.width: int = self.context_dim if self.body is None else body_width(self.body, self.context_dim)
        super().build(dim)

    def seen(self, context: Tensor) -> Tensor:
        """The context, or what the body makes of it: (B, width)."""
        return context if self.body is None else self.body(context)


class InnerProductAdversary(EncodingAdversary):
    """T(x, z) = <a(x), b(z)> / sqrt(H): two networks whose outputs, H wide, are multiplied (AVB, section 5.2).

    The scale and weights that preserve the variance (He et al. 2015) keep T of the same size whatever H is. With
    torch's smaller weights it learned log-ratios of Gaussians only half as accurately in the same number of steps.

    Args:
        hidden: widths of the hidden layers of both networks; the last one is H as well.
        body: a module (B, context_dim) -> (B, width) that precedes a(x).
        slope: negative slope of leaky ReLU units (0 is ReLU); ``None`` takes smooth SiLU units.
        squares: show the squares of the features too.
        log_prior: take log p(z) off the output (:class:`ConditionalAdversary`).
        dropout: share of the hidden units that is left out in training mode; ``eval()`` is the caller's to call.
        objective: see :class:`~avbvi.adversaries.Adversary`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or (at set-up) the body does not fit.

    Example:
        >>> import torch, avbvi
        >>> adversary = avbvi.InnerProductAdversary(hidden=(16, 16))
        >>> adversary.build_for(feature_dim=2, base_dim=2, context_dim=5)  # a guide does so at its set-up
        >>> adversary(torch.randn(7, 4, 2), torch.randn(4, 5)).shape  # 7 draws for each of 4 data
        torch.Size([7, 4])

    Source: AVB (Mescheder, Nowozin and Geiger 2017), section 5.2; He, Zhang, Ren and Sun (2015), Delving deep into
    rectifiers, ICCV, for the start of the weights.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (128, 128),
        body: nn.Module | None = None,
        slope: float | None = None,
        squares: bool = True,
        log_prior: bool = False,
        dropout: float = 0.0,
        *,
        objective: Objective = Logistic(),
    ) -> None:
        super().__init__(body, slope, squares, log_prior, objective=objective)
        self.dropout: float = share("dropout", dropout)
        self.hidden: tuple[int, ...] = checked_layers("hidden", hidden)

    def _build(self, dim: int) -> None:
        h = self.hidden[-1]
        self.of_context: ContextNetwork = ContextNetwork(self.width, self.hidden, self.slope, self.dropout)
        self.of_features: ContextNetwork = ContextNetwork(dim, self.hidden, self.slope, self.dropout)
        self.context_end: nn.Linear = nn.Linear(h, h)
        self.features_end: nn.Linear = nn.Linear(h, h)
        for network, end in ((self.of_context, self.context_end), (self.of_features, self.features_end)):
            for layer in network.layers:
                if isinstance(layer, nn.Linear):
                    _normal_weights_(layer, math.sqrt(2.0))
            # So that T starts within about .2 of 0, whatever H is.
            _normal_weights_(end, 0.5)

    def network_output(self, features: Tensor, context: Tensor) -> Tensor:
        a = self.context_end(self.of_context(self.seen(context)))
        b = self.features_end(self.of_features(features))
        t: Tensor = (a * b).sum(-1) / math.sqrt(a.shape[-1])
        return t


class JointAdversary(EncodingAdversary):
    """T(x, z) = f(x, z) + g(x) + h(z): a network of both, and one of each alone (AVB, section 5.2, MNIST).

    T starts at 0. What f sees of x is computed once per datum and added into each of its layers
    (:class:`~avbvi.amortised.networks.InjectedNetwork`). The paper's has four layers of 1024 units.

    Args:
        hidden: widths of the hidden layers of f.
        alone: widths of the hidden layers of g and h.
        body: a module (B, context_dim) -> (B, width) that precedes both networks of x.
        slope: negative slope of leaky ReLU units (0 is ReLU); ``None`` takes smooth SiLU units.
        squares: show the squares of the features too.
        log_prior: take log p(z) off the output (:class:`ConditionalAdversary`).
        dropout: share of the hidden units that is left out in training mode; ``eval()`` is the caller's to call.
        quadratic: add a quadratic form of x and z (:class:`~avbvi.amortised.quadratic.QuadraticForm`).
        objective: see :class:`~avbvi.adversaries.Adversary`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or (at set-up) the body does not fit.

    Example:
        >>> import torch, avbvi
        >>> adversary = avbvi.JointAdversary(hidden=(16,), alone=(16,))
        >>> adversary.build_for(feature_dim=2, base_dim=2, context_dim=5)
        >>> adversary(torch.randn(7, 4, 2), torch.randn(4, 5)).abs().max()  # T starts at 0
        tensor(0., grad_fn=<MaxBackward1>)

    Source: AVB (Mescheder, Nowozin and Geiger 2017), section 5.2, MNIST; the quadratic form is this project's.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (128, 128, 128),
        alone: tuple[int, ...] = (128,),
        body: nn.Module | None = None,
        slope: float | None = None,
        squares: bool = True,
        log_prior: bool = False,
        dropout: float = 0.0,
        quadratic: bool = False,
        *,
        objective: Objective = Logistic(),
    ) -> None:
        super().__init__(body, slope, squares, log_prior, objective=objective)
        self.dropout: float = share("dropout", dropout)
        self.quadratic: bool = flag("quadratic", quadratic)
        self.hidden: tuple[int, ...] = integers("hidden", hidden, "widths of the hidden layers of the joint network")
        self.alone: tuple[int, ...] = integers(
            "alone", alone, "widths of the hidden layers of the networks of x and z alone"
        )
        if not self.hidden:
            raise ValueError("hidden must name at least one layer, found ()")

    def _build(self, dim: int) -> None:
        self.joint: InjectedNetwork = InjectedNetwork(
            dim, self.width, self.hidden, 1, self.slope, zero_last=True, dropout=self.dropout
        )
        self.of_context: nn.Sequential = _scalar(self.width, self.alone, self.slope, self.dropout)
        self.of_features: nn.Sequential = _scalar(dim, self.alone, self.slope, self.dropout)
        if self.quadratic:
            self.form: QuadraticForm = QuadraticForm(dim // 2 if self.squares else dim, self.width)

    def network_output(self, features: Tensor, context: Tensor) -> Tensor:
        seen = self.seen(context)
        t: Tensor = self.joint(features, seen) + self.of_context(seen) + self.of_features(features)
        t = t.squeeze(-1)
        if self.quadratic:
            # The squares of the features, where they are shown, come last.
            t = t + self.form(features[..., : self.form.of_features.numel()], seen)
        return t


@torch.no_grad()
def _normal_weights_(layer: nn.Linear, gain: float) -> None:
    layer.weight.normal_(0.0, gain / math.sqrt(layer.in_features))
    layer.bias.zero_()


def _scalar(n_in: int, hidden: tuple[int, ...], slope: float | None, dropout: float) -> nn.Sequential:
    body = ContextNetwork(n_in, hidden, slope, dropout)
    end = nn.Linear(body.width, 1)
    zero_(end)
    return nn.Sequential(body, end)
