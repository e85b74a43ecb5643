"""Objectives of adversaries: how T is trained on draws of q and r, and what it then says of log q - log r.

All are f-divergences D_f = E_r f(q / r) in their variational form (AVB, eq. 6.6-6.7; Nguyen, Wainwright and Jordan
2010; Nowozin, Cseke and Tomioka 2016, "f-GAN")::

    D_f >= E_q g(T) - E_r f*(g(T)),    with equality where g(T) = f'(q / r)

f* is the convex conjugate of f, and the activation g takes the network's output T into its domain. But for eq. (6.10)
g is chosen such that the best T is log q - log r itself: nothing but the loss differs then.

Total variation, f(u) = |u - 1| / 2, is none of them: f'(q / r) is the sign of q - r, which no ratio can be read from.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from .arguments import found, number
from .estimates import Estimate


class Objective:
    """How an adversary is trained, and what its output means. Nothing else reads T.

    Example:
        An objective of one's own: least squares of labels 1 and 0, whose best T is q / (q + r).

        >>> import torch, avbvi
        >>> class LeastSquares(avbvi.Objective):
        ...     def loss(self, t_q, t_r):
        ...         return (t_q - 1.0).square().mean() + t_r.square().mean()
        ...     def log_ratio(self, t):
        ...         return torch.logit(t.clamp(1e-6, 1.0 - 1e-6))
        >>> adversary = avbvi.MLPAdversary(objective=LeastSquares())
        >>> adversary.objective.log_ratio(torch.tensor([0.5]))
        tensor([0.])
    """

    #: Built-in classes by name: those that a saved posterior may name.
    registry: ClassVar[dict[str, type[Objective]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.split(".")[0] == __package__:
            Objective.registry[cls.__name__] = cls

    def loss(self, t_q: Tensor, t_r: Tensor) -> Tensor:
        """What to minimise, a scalar, from T at draws of q, ``t_q`` (any shape), and of r, ``t_r`` (any shape)."""
        raise NotImplementedError

    def log_ratio(self, t: Tensor) -> Tensor:
        """log q - log r in nats, as told by T: ``t`` of any shape, the result of the same shape."""
        raise NotImplementedError

    @property
    def is_rebuildable(self) -> bool:
        """Whether :meth:`configuration` is enough to make this objective again (true of built-in classes)."""
        return Objective.registry.get(type(self).__name__) is type(self)

    def configuration(self) -> dict[str, Any]:
        """Class name and constructor arguments as plain data."""
        arguments: dict[str, Any] = dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}
        return {"class": type(self).__name__, "arguments": arguments}


class FDivergence(Objective):
    """Base class of f-divergences: minimises E_r f*(g(T)) - E_q g(T).

    A subclass defines g as :meth:`activated` and f*(g(.)), in one stable formula, as :meth:`conjugate`. As everywhere
    here T is best at log q - log r, unless the subclass defines :meth:`~Objective.log_ratio` too.

    Source: AVB (Mescheder, Nowozin and Geiger 2017), eq. 6.6 and 6.7; Nguyen, Wainwright and Jordan (2010), Estimating
    divergence functionals and the likelihood ratio by convex risk minimization, IEEE Trans. Inf. Theory 56(11);
    Nowozin, Cseke and Tomioka (2016), f-GAN, NeurIPS.
    """

    def activated(self, t: Tensor) -> Tensor:
        """g(T), which is wanted large at draws of q: ``t`` of any shape, the result of the same shape."""
        raise NotImplementedError

    def conjugate(self, t: Tensor) -> Tensor:
        """f*(g(T)), which is wanted small at draws of r: ``t`` of any shape, the result of the same shape."""
        raise NotImplementedError

    def loss(self, t_q: Tensor, t_r: Tensor) -> Tensor:
        """Minus the lower bound of D_f, a scalar, from T at draws of q, ``t_q``, and of r, ``t_r`` (both any shape)."""
        return self.conjugate(t_r).mean() - self.activated(t_q).mean()

    def log_ratio(self, t: Tensor) -> Tensor:
        return t

    @torch.no_grad()
    def divergence(self, t_q: Tensor, t_r: Tensor) -> Estimate:
        """The lower bound of D_f (eq. 6.7), in nats for the KL divergences and dimensionless for the others.

        It is a bound in expectation, and only at draws that T was not trained on.

        Args:
            t_q: T at draws of q, of any shape, independent of each other.
            t_r: T at draws of r, of any shape, likewise.

        Raises:
            ValueError: there are no draws of q or of r.
        """
        if not t_q.numel() or not t_r.numel():
            raise ValueError(
                f"t_q and t_r must hold T at draws of both laws, found {t_q.numel()} and {t_r.numel()} values"
            )
        at_q, at_r = self.activated(t_q.double().flatten()), self.conjugate(t_r.double().flatten())
        variance = sum(float(x.var()) / len(x) if len(x) > 1 else math.nan for x in (at_q, at_r))
        return Estimate(float(at_q.mean() - at_r.mean()), math.sqrt(variance))


@dataclass(frozen=True)
class Logistic(FDivergence):
    """The paper's objective (eq. 3.3): T* = log q - log r (Prop. 1). D_f is 2 JS(q, r) - log 4.

    f(u) = u log u - (u + 1) log(u + 1), without the constant that would make f(1) = 0. Its gradient in T is a
    probability, at most 1.

    Example:
        >>> import torch, avbvi
        >>> t = torch.zeros(4)  # an adversary that can't tell q from r
        >>> round(float(avbvi.Logistic().loss(t, t)), 4)  # 2 log 2
        1.3863

    Source: AVB (Mescheder, Nowozin and Geiger 2017), eq. 3.3 and Prop. 1.
    """

    def activated(self, t: Tensor) -> Tensor:
        return -functional.softplus(-t)

    def conjugate(self, t: Tensor) -> Tensor:
        return functional.softplus(t)


@dataclass(frozen=True)
class JensenShannon(FDivergence):
    """JS(q, r): half of :class:`Logistic`'s loss but for a constant, so that D_f is the divergence itself.

    f(u) = u / 2 log u - (u + 1) / 2 log((u + 1) / 2).

    Example:
        Normals with means 0 and 2 and sd 1; T is their log-ratio.

        >>> import torch, avbvi
        >>> q, r = torch.randn(50_000), 2.0 + torch.randn(50_000)
        >>> t_q, t_r = 2.0 - 2.0 * q, 2.0 - 2.0 * r
        >>> bound = avbvi.JensenShannon().divergence(t_q, t_r)
        >>> 0.30 < float(bound) < 0.35  # of at most log 2 = .69
        True

    Source: Nowozin, Cseke and Tomioka (2016), f-GAN, NeurIPS, tables 1 and 2.
    """

    def activated(self, t: Tensor) -> Tensor:
        return 0.5 * (math.log(2.0) - functional.softplus(-t))

    def conjugate(self, t: Tensor) -> Tensor:
        return 0.5 * (functional.softplus(t) - math.log(2.0))


@dataclass(frozen=True)
class TriangularDiscrimination(FDivergence):
    """The integral of (q - r)^2 / (q + r) (Vincze, Le Cam): the Brier score of sigmoid(T) in place of its logarithm.

    f(u) = (u - 1)^2 / (u + 1). Loss and gradient in T are bounded; the gradient vanishes where sigmoid(T) is wrong by
    far.

    Source: Le Cam (1986), Asymptotic methods in statistical decision theory; as a loss, Brier (1950),
    Verification of forecasts expressed in terms of probability, Monthly Weather Review 78.
    """

    def activated(self, t: Tensor) -> Tensor:
        return 1.0 - 4.0 * torch.sigmoid(-t).square()

    def conjugate(self, t: Tensor) -> Tensor:
        return 4.0 * torch.sigmoid(t).square() - 1.0


@dataclass(frozen=True)
class KullbackLeibler(FDivergence):
    """KL(q, r) as in eq. (6.10), exactly: T* = 1 + log q - log r.

    f(u) = u log u, f*(t) = exp(t - 1), and no activation. The exponential is of T at draws of r: a single one where T
    is large outweighs all others, and past T = 89 the loss overflows in single precision.

    Source: AVB (Mescheder, Nowozin and Geiger 2017), eq. 6.10.
    """

    def activated(self, t: Tensor) -> Tensor:
        return t

    def conjugate(self, t: Tensor) -> Tensor:
        return torch.exp(t - 1.0)

    def log_ratio(self, t: Tensor) -> Tensor:
        return t - 1.0


@dataclass(frozen=True)
class ReverseKullbackLeibler(FDivergence):
    """KL(r, q): f(u) = -log u, f*(t) = -1 - log(-t) for t < 0, g(T) = -exp(-T).

    The exponential is of -T at draws of q.

    Source: Nowozin, Cseke and Tomioka (2016), f-GAN, NeurIPS, tables 1 and 2.
    """

    def activated(self, t: Tensor) -> Tensor:
        return -torch.exp(-t)

    def conjugate(self, t: Tensor) -> Tensor:
        return t - 1.0


@dataclass(frozen=True)
class AlphaDivergence(FDivergence):
    """Amari's alpha-divergence, (int q^alpha r^(1 - alpha) - 1) / (alpha (alpha - 1)).

    f(u) = (u^alpha - 1 - alpha (u - 1)) / (alpha (alpha - 1)), with g(T) = (u^(alpha - 1) - 1) / (alpha - 1) and
    f*(g(T)) = (u^alpha - 1) / alpha at u = exp(T). Its limits at alpha = 1 and 0 are KL(q, r) and KL(r, q); with 1/2
    it is twice the squared Hellinger distance, with 2 and -1 half of Pearson's and Neyman's chi^2. In [0, 1] the loss
    is convex in T; elsewhere it has one minimum, and hardly a slope far on one side of it. Above 1 the divergence, and
    with it the loss, is infinite where the tails of q are too heavy for r's, below 0 the other way round.

    Args:
        alpha: the order, any finite number.

    Raises:
        TypeError: alpha is no number.
        ValueError: alpha is not finite.

    Example:
        >>> import torch, avbvi
        >>> t = torch.tensor([-1.0, 0.5, 2.0])
        >>> half = avbvi.AlphaDivergence(0.5).loss(t, t)  # twice the squared Hellinger distance
        >>> bool(torch.isclose(half, 2.0 * avbvi.SquaredHellinger().loss(t, t)))
        True

    Source: Cichocki and Amari (2010), Families of alpha- beta- and gamma-divergences, Entropy.
    """

    alpha: float

    def __post_init__(self) -> None:
        alpha = number("alpha", self.alpha)
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite, found {self.alpha}; for KL(q, r) take 1, for KL(r, q) 0")
        object.__setattr__(self, "alpha", alpha)

    def activated(self, t: Tensor) -> Tensor:
        return _power(t, self.alpha - 1.0)

    def conjugate(self, t: Tensor) -> Tensor:
        return _power(t, self.alpha)


@dataclass(frozen=True)
class SquaredHellinger(FDivergence):
    """The integral of (q^(1/2) - r^(1/2))^2: f(u) = (u^(1/2) - 1)^2, f*(t) = t / (1 - t), g(T) = 1 - exp(-T / 2).

    It treats q and r alike, and its exponentials are of half of T.

    Source: Nowozin, Cseke and Tomioka (2016), f-GAN, NeurIPS, tables 1 and 2.
    """

    def activated(self, t: Tensor) -> Tensor:
        return -torch.expm1(-0.5 * t)

    def conjugate(self, t: Tensor) -> Tensor:
        return torch.expm1(0.5 * t)


@dataclass(frozen=True)
class PearsonChiSquared(FDivergence):
    """chi^2(q, r), the integral of (q - r)^2 / r: f(u) = (u - 1)^2, f*(t) = t^2 / 4 + t, g(T) = 2 (exp(T) - 1).

    The least squares fit of q / r under r, of a ratio that is positive.

    Source: Nowozin, Cseke and Tomioka (2016), f-GAN, NeurIPS, tables 1 and 2; as least squares, Kanamori, Hido and
    Sugiyama (2009), A least-squares approach to direct importance estimation, JMLR 10.
    """

    def activated(self, t: Tensor) -> Tensor:
        return 2.0 * torch.expm1(t)

    def conjugate(self, t: Tensor) -> Tensor:
        return torch.expm1(2.0 * t)


@dataclass(frozen=True)
class NeymanChiSquared(FDivergence):
    """chi^2(r, q), the integral of (q - r)^2 / q: f(u) = (1 - u)^2 / u, f*(t) = 2 - 2 (1 - t)^(1/2).

    g(T) = 1 - exp(-2 T): least squares of r / q under q. It is infinite where r's tails are too heavy for q's, as for
    two normals if q's variance is less than half of r's.

    Source: Nowozin, Cseke and Tomioka (2016), f-GAN, NeurIPS, supplement.
    """

    def activated(self, t: Tensor) -> Tensor:
        return -torch.expm1(-2.0 * t)

    def conjugate(self, t: Tensor) -> Tensor:
        return -2.0 * torch.expm1(-t)


def _power(t: Tensor, order: float) -> Tensor:
    """(exp(order t) - 1) / order, and its limit t at order 0."""
    return t if order == 0.0 else torch.expm1(order * t) / order


def checked_objective(value: Any) -> Objective:
    """The argument ``objective``.

    Raises:
        TypeError: it is no :class:`Objective`: a class of them, or a name.
    """
    if isinstance(value, type) and issubclass(value, Objective):
        raise TypeError(f"objective must be an object, not a class, found {value.__name__}; give {value.__name__}()")
    if not isinstance(value, Objective):
        raise TypeError(f"objective must be an Objective such as Logistic(), found {found(value)}")
    return value
