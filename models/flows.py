"""An encoder of any of Pyro's transforms, and the flows of the literature as lists of transforms.

    FlowEncoder(body, latent_dim=32, transforms=planar(32, context_dim=64, length=80), context_dim=64)

`planar` (Rezende and Mohamed 2015), `couplings` (RealNVP: Dinh et al. 2017), `householder` (Tomczak and Welling 2016)
and `autoregressive` (IAF: Kingma et al. 2016) begin near the identity, so that an encoder starts as the Gaussian one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import pyro.distributions.transforms as pyro_transforms
import torch
from pyro.distributions import ConditionalTransform, TorchDistribution
from pyro.nn import ConditionalAutoRegressiveNN, ConditionalDenseNN
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from avbvi.arguments import instance, integer
from avbvi.trunks.flows import forget_cache

from .encoders import Drawn, DrawnDistribution, Encoder, features_of, scale_of, standard_normal

__all__ = ["FlowEncoder", "autoregressive", "couplings", "householder", "planar"]

#: Size of a hypernetwork's random weights beside PyTorch's own, so that a transform begins near the identity.
START = 0.01
LOG_SCALE_LIMIT = 4.0

AnyTransform: TypeAlias = Transform | ConditionalTransform


class FlowEncoder(Encoder):
    """A diagonal Gaussian given by the data, moved by transforms.

    Conditional transforms see a context computed from the data; for the others, whose parameters are
    the same for all data, the data enter by the Gaussian alone.

    log q is known at the encoder's own draws, for which a transform needs no inverse. Where all have one (couplings,
    reflections, splines: as cheap as a draw; autoregressive: latent_dim passes of its network in turn) it is known at
    any z, with gradient. Planar and radial flows have none.

    Every transform of Pyro's will do whose log-determinant is right; that of its ``Sylvester`` is not (as of Pyro
    1.9: it belongs to another map than the one computed).

    Args:
        body: data (B, *shape) to features (B, body.out_features).
        latent_dim: width of z.
        transforms: the transforms, in the order in which they are applied.
        context_dim: width of the context that the conditional ones among them expect; None if there are none.
        name: of the encoder in Pyro's parameter store.

    Raises:
        TypeError: something that is no transform.
        ValueError: no transforms, conditional ones without ``context_dim``, or Pyro's ``Sylvester``.
    """

    def __init__(
        self,
        body: nn.Module,
        latent_dim: int,
        transforms: Sequence[AnyTransform],
        context_dim: int | None = None,
        name: str = "encoder",
    ) -> None:
        super().__init__(latent_dim, name)
        _check_transforms(transforms, context_dim)
        self.body = body
        width = features_of(body)
        self.head = nn.Linear(width, 2 * self.latent_dim)
        self.context_dim = None if context_dim is None else integer("context_dim", context_dim, 1)
        if self.context_dim is not None:
            self.enter = nn.Sequential(nn.Linear(width, self.context_dim), nn.ELU())
        self.transforms = list(transforms)
        self.flow = nn.ModuleList(t for t in transforms if isinstance(t, nn.Module))

    def given(self, x: Tensor) -> tuple[Tensor, Tensor, list[Transform]]:
        """Mean and scale (B, latent_dim) of the Gaussian, and the transforms, for a minibatch."""
        features = self.body(x)
        loc, log_scale = self.head(features).chunk(2, -1)
        context = None if self.context_dim is None else self.enter(features)
        steps = [t.condition(context) if isinstance(t, ConditionalTransform) else t for t in self.transforms]
        return loc, scale_of(log_scale), steps

    def posterior(self, x: Tensor) -> TorchDistribution:
        loc, scale, steps = self.given(x)

        def draw(shape: torch.Size) -> Drawn:
            noise = torch.randn(*shape, self.latent_dim, dtype=loc.dtype, device=loc.device)
            z = loc + scale * noise
            log_q = standard_normal(noise) - scale.log().sum(-1)
            for t in steps:
                before, z = z, t(z)
                log_q = log_q - _log_det(t, before, z)
                forget_cache(t)
            return Drawn(z, log_q)

        def density(z: Tensor) -> Tensor:
            log_det: Tensor | float = 0.0
            for i, t in reversed(list(enumerate(steps))):
                after, z = z, _inverse(t, z, f"transforms[{i}]={type(self.transforms[i]).__name__}")
                log_det = log_det + _log_det(t, z, after)
                forget_cache(t)
            return standard_normal((z - loc) / scale) - scale.log().sum(-1) - log_det

        return DrawnDistribution(draw, loc.shape[:1], self.latent_dim, density)


def autoregressive(latent_dim: int, context_dim: int, layers: int = 4, hidden: int = 64) -> list[AnyTransform]:
    """Inverse autoregressive flow with a context (Kingma et al. 2016), the order of coordinates reversed in between.

    Args:
        latent_dim: width of z, at least 2.
        context_dim: width of the context.
        layers: number of transforms.
        hidden: width of each one's masked network; at least latent_dim is taken.
    """
    order = torch.arange(integer("latent_dim", latent_dim, 2))
    transforms: list[AnyTransform] = []
    for i in range(integer("layers", layers, 1)):
        network = ConditionalAutoRegressiveNN(
            latent_dim,
            integer("context_dim", context_dim, 1),
            [max(integer("hidden", hidden, 1), latent_dim)],
            permutation=order.flip(0) if i % 2 else order,
            nonlinearity=nn.ELU(),
        )
        _start_small(network.layers[-1])
        transforms.append(
            pyro_transforms.ConditionalAffineAutoregressive(
                network, log_scale_min_clip=-LOG_SCALE_LIMIT, log_scale_max_clip=LOG_SCALE_LIMIT
            )
        )
    return transforms


def couplings(latent_dim: int, context_dim: int, layers: int = 4, hidden: int = 64) -> list[AnyTransform]:
    """Affine couplings with a context (RealNVP: Dinh et al. 2017), the coordinates flipped in between.

    Args:
        latent_dim: width of z, at least 2.
        context_dim: width of the context.
        layers: number of couplings.
        hidden: width of each one's network.
    """
    # The flip exchanges the halves only if they are as large: with 2 d + 1 coordinates the middle one is always moved.
    split = integer("latent_dim", latent_dim, 2) // 2
    transforms: list[AnyTransform] = []
    for i in range(integer("layers", layers, 1)):
        if i:
            transforms.append(Flip())
        network = ConditionalDenseNN(
            split,
            integer("context_dim", context_dim, 1),
            [integer("hidden", hidden, 1)],
            [latent_dim - split, latent_dim - split],
            nonlinearity=nn.ELU(),
        )
        _start_small(network.layers[-1])
        transforms.append(
            pyro_transforms.ConditionalAffineCoupling(
                split, network, log_scale_min_clip=-LOG_SCALE_LIMIT, log_scale_max_clip=LOG_SCALE_LIMIT
            )
        )
    return transforms


def planar(latent_dim: int, context_dim: int, length: int = 80) -> list[AnyTransform]:
    """Planar flow of the given length, its parameters linear in the context (Rezende and Mohamed 2015).

    Args:
        latent_dim: width of z.
        context_dim: width of the context.
        length: number of transforms; 80 is the longest of that paper.
    """
    d, context_dim = integer("latent_dim", latent_dim, 1), integer("context_dim", context_dim, 1)
    transforms: list[AnyTransform] = []
    for _ in range(integer("length", length, 1)):
        network = _Heads(context_dim, (1, d, d))
        with torch.no_grad():
            w = torch.randn(d) / math.sqrt(d)
            # z + u_hat tanh(w'z + b) with u_hat = u + (softplus(w'u) - 1 - w'u) w / |w|^2, zero if softplus(w'u) = 1.
            network.linear.bias[1 : d + 1] = math.log(math.e - 1.0) * w / w.square().sum()
            network.linear.bias[d + 1 :] = w
        transforms.append(pyro_transforms.ConditionalPlanar(network))
    return transforms


def householder(latent_dim: int, context_dim: int, length: int = 10) -> list[AnyTransform]:
    """Householder flow: reflections whose vectors are linear in the context (Tomczak and Welling 2016).

    Args:
        latent_dim: width of z.
        context_dim: width of the context.
        length: number of reflections; even for the flow to begin near the identity.
    """
    d, context_dim = integer("latent_dim", latent_dim, 1), integer("context_dim", context_dim, 1)
    transforms: list[AnyTransform] = []
    for i in range(integer("length", length, 1)):
        network = _Heads(context_dim, (d,))
        # Twice the same reflection is the identity. (From independent vectors training was caught in worse than
        # diagonal Gaussians.)
        if i % 2 == 0:
            vector = torch.randn(d) / math.sqrt(d)
        with torch.no_grad():
            network.linear.bias.copy_(vector)
        transforms.append(pyro_transforms.ConditionalHouseholder(d, network))
    return transforms


class Flip(Transform):
    """Reverse the order of the coordinates; unlike Pyro's ``Permute`` it has no tensor to be left on another device."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flip)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return x.flip(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.flip(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zeros of shape (*batch,)."""
        return x.new_zeros(x.shape[:-1])


class _Heads(nn.Module):
    """Parameters of a transform, linear in the context and nearly constant at the start: one tensor or several."""

    def __init__(self, context_dim: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        self.linear = nn.Linear(context_dim, sum(sizes))
        _start_small(self.linear)

    def forward(self, context: Tensor) -> Tensor | tuple[Tensor, ...]:
        out: Tensor = self.linear(context)
        return out if len(self.sizes) == 1 else out.split(self.sizes, -1)


def _log_det(t: Transform, before: Tensor, after: Tensor) -> Tensor:
    """log|det| of a transform, shape (*batch,)."""
    log_det = t.log_abs_det_jacobian(before, after)
    # Elementwise transforms give one for each coordinate.
    return log_det.sum(-1) if log_det.dim() == before.dim() else log_det


def _inverse(t: Transform, z: Tensor, name: str) -> Tensor:
    """What a transform maps to z.

    Raises:
        NotImplementedError: it has no inverse.
    """
    if isinstance(t, pyro_transforms.AffineAutoregressive):
        return _inverse_autoregressive(t, z)
    try:
        return t.inv(z)
    except (KeyError, NotImplementedError) as error:  # Pyro's have looked for z among what they computed last
        raise NotImplementedError(
            f"log q is known at the encoder's own draws only, as {name} has no inverse; couplings, autoregressive and "
            "householder make flows with a density everywhere"
        ) from error


def _inverse_autoregressive(t: Any, z: Tensor) -> Tensor:
    """The inverse of Pyro's affine autoregressive transform, whose own works in torch's default dtype only."""
    before = [torch.zeros_like(z[..., 0])] * z.shape[-1]
    for i in t.arn.permutation.tolist():
        # Coordinate i depends on those that come earlier in the permutation, which are right by now.
        shift, log_scale = (out[..., i] for out in t.arn(torch.stack(before, -1)))
        if t.stable:
            scale = torch.sigmoid(log_scale + t.sigmoid_bias)
            shift = (1.0 - scale) * shift
        else:
            scale = log_scale.clamp(t.log_scale_min_clip, t.log_scale_max_clip).exp()
        before[i] = (z[..., i] - shift) / scale
    return torch.stack(before, -1)


def _start_small(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.mul_(START)
        layer.bias.zero_()


def _check_transforms(transforms: Sequence[AnyTransform], context_dim: int | None) -> None:
    instance("transforms", transforms, Sequence, "a list of Pyro transforms")
    if not transforms:
        raise ValueError("transforms must have at least one transform, found none; models.encoders has Gaussians")
    for i, t in enumerate(transforms):
        instance(f"transforms[{i}]", t, (Transform, ConditionalTransform), "a Pyro transform")
        if isinstance(t, ConditionalTransform) and context_dim is None:
            raise ValueError(f"transforms[{i}] is conditional: say by context_dim how wide a context it expects")
        if isinstance(t, pyro_transforms.Sylvester):
            raise ValueError(f"transforms[{i}]: Pyro's Sylvester gives the log-determinant of another map than its own")
