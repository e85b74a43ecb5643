"""A user's own log-density as a Pyro model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from .arguments import flag, function, integers
from .errors import ModelError
from .remedies import remedy, shortened, spelled
from .supports import Sites, check_name, checked_init, checked_sites


class LogDensity:
    """A user's unnormalised log-density as a Pyro model.

    Args:
        log_prob: maps values (*batch, *event_shape), or a dict of them when ``sites`` is given, to
            log-densities (*batch,), with respect to the values' own coordinates.
        event_shape: shape of one draw of the single real-valued site ``name``.
        sites: instead of ``event_shape``, name -> (support, shape) with supports from
            ``torch.distributions.constraints``; shape is the whole shape of the site's value.
        init: where optimisation starts: a tensor (*event_shape), or a dict of such tensors of each shape in ``sites``.
        batched: ``False`` if ``log_prob`` takes one draw at a time; it is then run through ``torch.vmap``.
        name: name of the single site.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: neither or both of ``event_shape`` and ``sites``, an ``init`` of the wrong shape, or a support
            that no bijection maps to, or that has no values of the shape.
        ModelError: (when called) ``log_prob`` fails, changes its argument, or returns a wrong type, shape or dtype.

    Example:
        >>> import torch, avbvi
        >>> ring = avbvi.LogDensity(lambda z: -8.0 * (z.norm(dim=-1) - 2.0) ** 2, event_shape=(2,))
        >>> ring.evaluate({"z": torch.tensor([[2.0, 0.0], [0.0, 1.0]])})
        tensor([-0., -8.])
        >>> from torch.distributions import constraints
        >>> gamma = avbvi.LogDensity(lambda v: v["scale"].log() - v["scale"],
        ...                          sites={"scale": (constraints.positive, ())})
        >>> gamma.evaluate({"scale": torch.tensor([1.0, 2.0])}).shape
        torch.Size([2])
    """

    @spelled
    def __init__(
        self,
        log_prob: Callable[[Any], Tensor],
        event_shape: tuple[int, ...] | None = None,
        sites: Mapping[str, tuple[constraints.Constraint, tuple[int, ...]]] | None = None,
        *,
        init: Tensor | Mapping[str, Tensor] | None = None,
        batched: bool = True,
        name: str = "z",
    ) -> None:
        if (event_shape is None) == (sites is None):
            raise ValueError("give either event_shape (one real-valued site) or sites (name -> (support, shape))")
        function("log_prob", log_prob)
        check_name("name", name)
        self.log_prob = log_prob
        self.single: str | None = name if sites is None else None
        self.batched: bool = flag("batched", batched)
        if sites is None:
            assert event_shape is not None
            sites = {name: (constraints.real, integers("event_shape", event_shape, "dimensions"))}
        self.sites: Sites = checked_sites(sites)
        self.init: dict[str, Tensor] | None = checked_init(
            init if self.single is None or init is None else {name: init}, self.sites
        )

    def __call__(self) -> dict[str, Tensor]:
        """Run as a Pyro model: one site per entry of ``sites`` and the factor ``log_density``."""
        values = {
            site: pyro.sample(site, _Proposal(support, torch.Size(shape)))
            for site, (support, shape) in self.sites.items()
        }
        # As pyro.factor, but without validation: what to do about NaN is decided by those who see all draws.
        density = dist.Unit(self.evaluate(values), validate_args=False)
        pyro.sample("log_density", density, obs=density.sample(), infer={"is_auxiliary": True})
        return values

    def evaluate(self, values: dict[str, Tensor]) -> Tensor:
        """log_prob (*batch,) at values {site: (*batch, *shape)}, checked for type, shape and dtype.

        Raises:
            ModelError: ``log_prob`` fails, changes its argument, or returns a wrong type, shape or dtype.
        """
        site, (_, shape) = next(iter(self.sites.items()))
        first = values[site]
        batch = first.shape[: first.dim() - len(shape)]
        argument: Any = values if self.single is None else values[self.single]
        versions = [value._version for value in values.values()]
        try:
            if not self.batched:
                result = self._mapped(argument, len(batch))
            elif batch:
                result = self.log_prob(argument)
            else:
                # A single draw goes in as a batch of one, so that functions may index z[:, 0].
                result = self.log_prob(_unsqueezed(argument))
                result = result.squeeze(0) if isinstance(result, Tensor) and result.shape == (1,) else result
        except ModelError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            shape = (*(batch or (1,)), *shape) if self.batched else shape
            what = f"values of shape {tuple(shape)}" if self.single else f"a dict of the sites {sorted(values)}"
            hint = (
                "draws along the first dimension; for a function of one draw pass batched=False"
                if self.batched
                else "one draw at a time, through torch.vmap, which allows no item() and no if"
            )
            raise ModelError(
                f"log_prob failed on {what} ({type(error).__name__}: {shortened(error)}). "
                + (remedy(error) or f"With batched={self.batched} it gets {hint}")
            ) from error
        if versions != [value._version for value in values.values()]:
            raise ModelError("log_prob changes its argument in place; work on a copy, or use operations without _")
        if not isinstance(result, Tensor):
            raise ModelError(f"log_prob must return a torch.Tensor, found {type(result).__name__}")
        if result.shape != batch:
            draws = (1,) if self.batched and not batch else tuple(batch)
            raise ModelError(
                f"log_prob must return shape {draws} for values of shape {(*draws, *shape)} (one number per draw), "
                f"found {tuple(result.shape)}{self._misshapen(tuple(result.shape), draws, tuple(shape))}"
            )
        if result.dtype != first.dtype:
            raise ModelError(
                f"log_prob must return dtype {first.dtype}, that of its argument, found {result.dtype}; "
                "convert the data that it closes over"
            )
        return result

    def _misshapen(self, found: tuple[int, ...], draws: tuple[int, ...], event: tuple[int, ...]) -> str:
        """What to do about a result of the shape ``found``."""
        single = "for a function of one draw pass batched=False"
        dims = tuple(range(-len(event), 0))
        total = f".sum({dims[0] if len(dims) == 1 else dims})"
        if event and found == (*draws, *event):
            return f"; sum over the coordinates of each draw, {total}"
        if not self.batched:
            return ""
        if event and not found:
            return f"; sum over the coordinates alone, {total}, not over the draws; {single}"
        return f"; {single}"

    def _mapped(self, argument: Any, batch_dims: int) -> Tensor:
        function = self.log_prob
        for _ in range(batch_dims):
            function = torch.vmap(function)
        return function(argument)


def _unsqueezed(argument: Any) -> Any:
    return {k: v[None] for k, v in argument.items()} if isinstance(argument, dict) else argument[None]


class _Proposal(dist.TorchDistribution):
    """A place to draw a latent value from whose own density does not count (log_prob is 0).

    It plays the part of ``ImproperUniform``, which can't be drawn from, for LogDensity's sites.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(
        self,
        support: constraints.Constraint,
        event_shape: torch.Size,
        batch_shape: torch.Size = torch.Size(),
    ) -> None:
        self._support = support
        super().__init__(batch_shape, event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        missing = len(self.event_shape) - self._support.event_dim
        return constraints.independent(self._support, missing) if missing else self._support

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> _Proposal:
        return _Proposal(self._support, self.event_shape, torch.Size(batch_shape))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        transform = biject_to(self._support)
        shape = torch.Size(sample_shape) + self.batch_shape + transform.inverse_shape(self.event_shape)
        return transform(torch.randn(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(value.shape[: value.dim() - len(self.event_shape)])
