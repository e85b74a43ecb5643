"""Sites that a user declares by support and shape, and values to start from: checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from .arguments import found, instance, integers, real_tensor

Sites = dict[str, tuple[constraints.Constraint, tuple[int, ...]]]


def check_name(what: str, name: Any) -> None:
    """Raise unless ``name`` may name a site of a LogDensity."""
    instance(what, name, str, "a string")
    if not name or name == "log_density":
        raise ValueError(f"{what} must be a name, and not that of the factor, found {name!r}")


def checked_sites(sites: Any) -> Sites:
    """The sites as plain tuples (support, shape).

    Raises:
        TypeError: no dict of pairs of a constraint and a shape.
        ValueError: none, a shape that the support has no values of, or a support that no bijection maps to.
    """
    instance("sites", sites, Mapping, "a dict of name -> (support, shape)")
    if not sites:
        raise ValueError("sites must name at least one site, found none")
    checked: Sites = {}
    for site, entry in sites.items():
        check_name("a key of sites", site)
        if not isinstance(entry, tuple | list) or len(entry) != 2:
            raise TypeError(f"sites[{site!r}] must be a pair (support, shape), found {found(entry)}")
        support = entry[0]
        instance(f"the support of sites[{site!r}]", support, constraints.Constraint, "a torch.distributions constraint")
        shape = integers(f"the shape of sites[{site!r}]", entry[1], "dimensions")
        try:
            transform = biject_to(support)
        except NotImplementedError:
            raise ValueError(
                f"sites[{site!r}]: torch.distributions.biject_to knows no map from real numbers to the support "
                f"{support}; write the density on real, positive, simplex or corr_cholesky sites instead"
            ) from None
        try:
            if tuple(transform.forward_shape(transform.inverse_shape(torch.Size(shape)))) != shape:
                raise ValueError("its values have another shape")
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"sites[{site!r}]: the support {support} has no values of shape {shape}: {error}"
            ) from error
        checked[site] = (support, shape)
    return checked


def checked_init(init: Any, sites: Sites) -> dict[str, Tensor] | None:
    """The values to start from as tensors, one per site; ``None`` of ``None``.

    Raises:
        TypeError: a value that holds no real numbers.
        ValueError: a site is missing, or its value is misshapen, not finite or outside its support.
    """
    if init is None:
        return None
    if not isinstance(init, Mapping) or set(init) != set(sites):
        raise ValueError(f"init must give a value for each of the sites {sorted(sites)}")
    values = {site: real_tensor(f"init[{site!r}]", value) for site, value in init.items()}
    for site, value in values.items():
        support, shape = sites[site]
        if tuple(value.shape) != shape:
            raise ValueError(f"init[{site!r}] must have shape {shape}, found {tuple(value.shape)}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"init[{site!r}] must be finite, found NaN or infinite values")
        if not bool(support.check(value).all()):
            raise ValueError(f"init[{site!r}] lies outside its support {support}")
    return values
