"""DatumTarget: the log-densities of the single data of a plated model, for one minibatch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ..errors import ModelError
from ..remedies import BROADCAST, innermost, remedy, shortened
from ..rng import seeded
from ..targets import PARTICLES, Model
from .layout import Frame, PlateLayout, data_frame


class DatumTarget:
    """log p(x_i, z_i) of every datum i of a minibatch, as batched functions of the data's unconstrained vectors.

    Terms are those inside the model's plate over data, without the factor N / B by which Pyro scales a minibatch's.
    All functions are differentiable in z and in the model's own parameters.

    Args:
        model: the Pyro model; its latent sites, unless hidden by ``poutine.block``, are those of ``layout``.
        layout: one datum's sites; read off the model by default.
        args, kwargs: the model's arguments: the minibatch.
        vectorize: run the model once inside an outer plate for all draws; ``False`` runs it draw by draw.
        indices: the minibatch's places in a plate that subsamples; by default those of a run seeded with 0.

    Attributes:
        batch: B, the number of data.
        dim: width of one datum's vector.
        indices: the minibatch's places among all data (B,); ``None`` where the model knows them itself.

    Raises:
        ModelError: the model's latent sites are not those of the layout.
    """

    def __init__(
        self,
        model: Model,
        layout: PlateLayout | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        vectorize: bool = True,
        indices: Tensor | None = None,
    ) -> None:
        self.model: Model = model
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs or {}
        self.vectorize = vectorize
        # Seeded, so that a resumed run draws what an uninterrupted one does.
        with torch.no_grad(), seeded(0), poutine.block():
            full = poutine.trace(self._at(model, layout, indices)).get_trace(*args, **self.kwargs)
        trace = prune_subsample_sites(full)
        latent = {n["name"]: n for n in trace.nodes.values() if n["type"] == "sample" and not n["is_observed"]}
        self.layout: PlateLayout = layout or PlateLayout.from_trace(trace)
        names = {site.name for site in self.layout.sites}
        if set(latent) != names:
            raise ModelError(
                f"the latent sites of one datum are {sorted(names)}, but the model's are {sorted(latent)}; hide others "
                "by poutine.block(model, hide=[...]) and fit them by a guide of their own in an AutoGuideList"
            )
        frame = data_frame(trace)
        nodes = [n for n in trace.nodes.values() if n["type"] == "sample"]
        self.max_plate_nesting: int = -min(f.dim for n in nodes for f in n["cond_indep_stack"] if f.vectorized)
        self.has_parameters: bool = any(n["type"] == "param" for n in trace.nodes.values())
        self.frame = frame
        self.indices: Tensor | None = full.nodes[frame.name]["value"] if frame.name in full.nodes else None

    @property
    def batch(self) -> int:
        return self.frame.size

    @property
    def dim(self) -> int:
        return self.layout.dim

    def on(self, args: tuple[Any, ...], kwargs: dict[str, Any], frame: Frame, indices: Tensor | None) -> DatumTarget:
        """The same on another minibatch, without running the model, which knows its places where they are ``None``."""
        other = copy.copy(self)
        other.args, other.kwargs, other.frame, other.indices = args, kwargs, frame, indices
        return other

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(x_i, z_i) with the constraints' Jacobian: (*S, B, dim) -> (*S, B)."""
        return self._log_prob(z, prior_only=False)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z_i) with the constraints' Jacobian: (*S, B, dim) -> (*S, B); what follows the latents is not run."""
        return self._log_prob(z, prior_only=True)

    def _log_prob(self, z: Tensor, *, prior_only: bool) -> Tensor:
        self._check(z)
        shape = z.shape[:-1]
        n = math.prod(shape[:-1])
        z = z.reshape(n, self.batch, self.dim)
        if not self.vectorize and n != 1:
            return torch.cat([self._log_prob(row[None], prior_only=prior_only) for row in z]).reshape(shape)
        values, log_det = self.layout.constrain(z)
        data = {s.name: self._placed(values[s.name], s, n) for s in self.layout.sites}
        names = {s.name for s in self.layout.sites}
        trace = self._trace(poutine.condition(self.model, data=data), n, stop_after=names if prior_only else None)
        trace.compute_log_prob()
        total = log_det
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or (prior_only and name not in names):
                continue
            if any(f.name == self.frame.name for f in node["cond_indep_stack"]):
                total = total + self._by_datum(name, node["log_prob"], n) / self.frame.scale
        return total.reshape(shape)

    def _check(self, z: Tensor) -> None:
        if z.dim() < 2 or tuple(z.shape[-2:]) != (self.batch, self.dim):
            raise ValueError(
                f"z must have shape (..., {self.batch}, {self.dim}): one vector for each of the {self.batch} data; "
                f"found {tuple(z.shape)}"
            )

    def _placed(self, value: Tensor, site: Any, n: int) -> Tensor:
        """(n, B, *shape) with the n on the left of all of the model's plates; without it if the model runs as it is."""
        if not self.vectorize:
            return self.layout.in_plate(value[0], site)
        left = (1,) * (self.max_plate_nesting + self.layout.plate_dim)
        return self.layout.in_plate(value.reshape(n, *left, *value.shape[1:]), site)

    def _by_datum(self, name: str, term: Tensor, n: int) -> Tensor:
        """A site's log-density, of the shape of its plates, summed over all but draws and data: (n, B)."""
        nesting = self.max_plate_nesting
        wanted = term.reshape(*(1,) * (nesting + 1 - term.dim()), *term.shape)
        here = wanted.movedim((-nesting - 1, self.layout.plate_dim), (-2, -1))
        rows, data = here.shape[-2:]
        if wanted.dim() > nesting + 1 or rows not in (1, n) or data != self.batch:
            raise ModelError(
                f"site {name!r} has log-density of shape {tuple(term.shape)} for {n} draws of {self.batch} data at "
                "once: the model does not broadcast over an outer plate. Make its arithmetic broadcast over leading "
                "dimensions (index from the right, take sums over dim=-1), or use "
                "AdversarialELBO(vectorize_particles=False)"
            )
        return here.reshape(-1, rows, data).sum(0).expand(n, data)

    @staticmethod
    def _at(model: Model, layout: PlateLayout | None, indices: Tensor | None) -> Model:
        if indices is None:
            return model
        if layout is None:
            raise ValueError("indices need a layout, which names their plate")
        conditioned: Model = poutine.condition(model, data={layout.plate: indices})
        return conditioned

    def _trace(self, model: Model, n: int, *, stop_after: set[str] | None = None) -> poutine.Trace:
        model = self._at(model, self.layout, self.indices)
        if stop_after is not None:
            model = StopAfter(stop_after)(model)
        if self.vectorize:
            model = pyro.plate(PARTICLES, n, dim=-self.max_plate_nesting - 1)(model)
        traced = poutine.trace(model)
        try:
            with poutine.block():
                traced.get_trace(*self.args, **self.kwargs)
        except Reached:
            pass
        except ModelError as error:
            refusal = innermost(error)
            raise refusal from refusal.__cause__
        except (RuntimeError, ValueError, IndexError) as error:
            if not self.vectorize:
                raise
            last = [name for name, node in traced.trace.nodes.items() if node["type"] == "sample"][-1:]
            raise ModelError(
                f"the model failed when run for many draws at once inside an outer plate (last site reached: "
                f"{last[0] if last else 'none'!r}): {shortened(error)}. "
                + (remedy(error, self.args, self.kwargs) or BROADCAST)
            ) from error
        return prune_subsample_sites(traced.trace)

    @torch.no_grad()
    def sample_prior(self, n: int) -> Tensor:
        """n draws of every datum's latents from the prior, as unconstrained vectors (n, B, dim)."""
        if not self.vectorize and n != 1:
            return torch.cat([self.sample_prior(1) for _ in range(n)])
        names = {s.name for s in self.layout.sites}
        return self._vectors(self._trace(self.model, n, stop_after=names), n)

    def _vectors(self, trace: poutine.Trace, n: int) -> Tensor:
        values = {s.name: trace.nodes[s.name]["value"].reshape(n, self.batch, *s.shape) for s in self.layout.sites}
        return self.layout.unconstrain(values)[0]

    @torch.no_grad()
    def simulate(self) -> tuple[Tensor, DatumTarget]:
        """Draw latents and data from the model: z (B, dim), and the target given these data.

        z is then an exact draw of that target's posterior.
        """
        with poutine.block():
            model = self._at(poutine.uncondition(self.model), self.layout, self.indices)
            trace = poutine.trace(model).get_trace(*self.args, **self.kwargs)
        trace = prune_subsample_sites(trace)
        names = {s.name for s in self.layout.sites}
        data = {
            name: node["value"]
            for name, node in trace.nodes.items()
            if node["type"] == "sample" and name not in names and not node["infer"].get("_deterministic")
        }
        other = copy.copy(self)
        other.model = poutine.condition(self.model, data=data)
        return self._vectors(trace, 1)[0], other


def path_only(log_prob: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """``log_prob`` (*batch, dim) -> (*batch,) at z, with its gradient in z but none in any other tensor it uses.

    Each value must depend on its own row of z alone. Second derivatives are lost.
    """
    if not (torch.is_grad_enabled() and z.requires_grad):
        with torch.no_grad():
            return log_prob(z)
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        value = log_prob(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    # Zero in value, slope in gradient.
    return value.detach() + (slope * (z - leaf.detach())).sum(-1)


class Reached(Exception):
    """All sites of interest have been visited."""


class StopAfter(Messenger):
    """Ends a model's run when it has visited the given sites."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names

    def __enter__(self) -> Any:
        self.left: set[str] = set(self.names)
        return super().__enter__()

    def _pyro_post_sample(self, msg: Any) -> None:
        self.left.discard(msg["name"])
        if not self.left:
            raise Reached
