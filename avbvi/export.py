"""ArviZ containers, for ArviZ 0.x (InferenceData) and 1.x (DataTree)."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro.poutine import Trace
from torch import Tensor

from . import predictive
from .arguments import flag, instance
from .errors import ModelError
from .log_density import LogDensity
from .targets import UnconstrainedTarget

Groups = dict[str, dict[str, np.ndarray]]
# Dimension names with a meaning of their own in ArviZ.
_RESERVED = frozenset({"chain", "draw", "sample"})


def import_arviz() -> Any:
    """ArviZ, without the notice about its next major version that 0.23 gives on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def to_arviz(
    target: UnconstrainedTarget,
    values: dict[str, Tensor],
    derived: dict[str, Tensor],
    *,
    stats: Mapping[str, Tensor],
    attributes: Mapping[str, str],
    log_likelihood: bool | None,
    posterior_predictive: bool | None,
    prior: bool | None,
    coords: Mapping[str, Sequence[Any]] | None,
    dims: Mapping[str, Sequence[str]] | None,
) -> Any:
    """Draws and all that a model says about them as an ArviZ container; see :meth:`avbvi.Posterior.to_arviz`.

    Args:
        target: the model with its arguments.
        values: draws of its latent sites {site: (n, *shape)}.
        derived: its deterministic sites at these draws {site: (n, *shape)}.
        stats: what else is known of each draw {name: (n,)}.
        attributes: of the groups ``posterior`` and ``sample_stats``.
        log_likelihood, posterior_predictive, prior, coords, dims: as in the method.
    """
    for name, wanted in (
        ("log_likelihood", log_likelihood),
        ("posterior_predictive", posterior_predictive),
        ("prior", prior),
    ):
        if wanted is not None:
            flag(name, wanted)
    for name, table in (("coords", coords), ("dims", dims)):
        if table is not None:
            instance(name, table, Mapping, "a dict")
    trace = predictive.single_run(target, values)
    observed = predictive.observed_sites(trace, values)
    partial = {name: reason for name, node in observed.items() if (reason := predictive.subsampled_plate(node))}
    whole = [name for name in observed if name not in partial]
    groups: Groups = {"posterior": _with_chain({**values, **derived}), "sample_stats": _with_chain(stats)}
    if _applies("log_likelihood", log_likelihood, bool(observed), "has no observed sites (a factor is none)"):
        groups["log_likelihood"] = _attempt(
            "log_likelihood", log_likelihood, lambda: predictive.log_likelihood(target, values, whole), partial
        )
    if _applies("posterior_predictive", posterior_predictive, bool(observed), "has no observed sites to predict"):
        drawn = _attempt(
            "posterior_predictive", posterior_predictive, lambda: (predictive.predictions(target, values), {}), partial
        )
        groups["posterior_predictive"] = {name: value for name, value in drawn.items() if name in whole}
    if _applies("prior", prior, not isinstance(target.model, LogDensity), "is a LogDensity and has no prior"):
        first = next(iter(values.values()))
        drawn = _attempt("prior", prior, lambda: (predictive.prior_draws(target, len(first), first.device), {}), {})
        groups["prior"] = {name: value for name, value in drawn.items() if name in groups["posterior"]}
        groups["prior_predictive"] = {name: value for name, value in drawn.items() if name in whole}
    groups["observed_data"] = {name: _array(observed[name]["value"]) for name in whole}
    groups["constant_data"] = constants(target, {name: node["value"] for name, node in observed.items()}, trace)
    groups = {name: group for name, group in groups.items() if group}
    names, labels = dimensions(_shapes(groups), plate_dims(trace), dims, coords)
    return container(groups, names, labels, {"posterior": attributes, "sample_stats": attributes})


def container(
    groups: Groups,
    dims: dict[str, list[str]],
    coords: dict[str, np.ndarray],
    attributes: Mapping[str, Mapping[str, str]],
) -> Any:
    """ArviZ's container of these groups: ``InferenceData`` (0.x) or ``DataTree`` (1.x).

    Args:
        groups: group -> name -> array, with (chain, draw) in front outside the groups of data.
        dims: name -> its dimensions, without chain and draw; those that ``log_likelihood`` has no longer are
            taken off the end.
        coords: dimension -> its labels.
        attributes: group -> what is added to its attributes.
    """
    az = import_arviz()
    if int(az.__version__.split(".")[0]) >= 1:
        result = az.from_dict(groups, dims=dims, coords=coords)
    else:
        result = az.from_dict(**groups, dims=dims, coords=coords)
    for name in groups:
        result[name].attrs.update({"inference_library": "avbvi", **attributes.get(name, {})})
    return result


def add_group(result: Any, name: str, variables: Mapping[str, np.ndarray], attributes: Mapping[str, str]) -> Any:
    """The container with one more group, of a name that ArviZ need not know; arrays have (chain, draw) in front."""
    az = import_arviz()
    whole = {"inference_library": "avbvi", **attributes}
    if int(az.__version__.split(".")[0]) >= 1:
        result[name] = az.from_dict({name: dict(variables)})[name]
        result[name].attrs.update(whole)
        return result
    dataset = az.dict_to_dataset(dict(variables))
    dataset.attrs.update(whole)
    with warnings.catch_warnings():
        # It says that the scheme has no such group.
        warnings.filterwarnings("ignore", f"{name} group is not defined", UserWarning)
        result.add_groups({name: dataset})
    return result


# -- groups ---------------------------------------------------------------------------------------------


def _applies(group: str, wanted: bool | None, possible: bool, why_not: str) -> bool:
    """Whether to make a group; an error if it was asked for of a model that can't have it."""
    if wanted and not possible:
        raise ModelError(f"{group}=True can't be met: the model {why_not}; leave {group}=None")
    return wanted is not False and possible


def _attempt(
    group: str,
    wanted: bool | None,
    compute: Callable[[], tuple[dict[str, Tensor], dict[str, str]]],
    left_out: dict[str, str],
) -> dict[str, np.ndarray]:
    """A group, with a warning (an error if it was asked for) about the sites of it that can't be had."""
    found: dict[str, Tensor] = {}
    cause: Exception | None = None
    try:
        found, more = compute()
        reasons = [f"site {site!r}: {reason}" for site, reason in {**left_out, **more}.items()]
    except (NotImplementedError, ValueError) as error:
        cause, reasons = error, [str(error)]
    if reasons:
        message = f"the group {group!r} can't be had in full ({'; '.join(reasons)})"
        if wanted:
            raise ModelError(f"{message}; leave {group}=None to go without") from cause
        # The line to blame is the caller of Posterior.to_arviz: two functions here, the method and no_grad's wrapper.
        warnings.warn(f"{message}; {group}=False goes without and without this warning", UserWarning, stacklevel=5)
    return _with_chain(found)


def constants(target: UnconstrainedTarget, observed: Mapping[str, Any], trace: Trace) -> dict[str, np.ndarray]:
    """Tensors and arrays among the model's arguments that are not observed values, by their names in its signature.

    Those inside a dictionary go by their keys, those without a name by ``arg0``, ``arg1``... A name that a site
    has too gets ``_argument`` appended, as a dimension name belongs to one variable in all groups.
    """
    arguments = {
        name: value
        for name, value in _named_arguments(target.model, target.args, target.kwargs).items()
        if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufcUM")
    }
    data = {site: _array(value) for site, value in observed.items()}
    shared = {name: [s for s in data if np.shares_memory(_array(value), data[s])] for name, value in arguments.items()}
    # Where no argument holds the observed tensor itself, one of equal value does (a conversion of it).
    copied = set(data) - {site for sites in shared.values() for site in sites}
    result = {}
    for name, value in arguments.items():
        array = _array(value)
        # Site by site, observations may take an argument in parts; one that holds more than they do is kept.
        observed_whole = array.size > 0 and sum(data[site].size for site in shared[name]) >= array.size
        if not observed_whole and not any(_equal(array, data[site]) for site in copied):
            result[f"{name}_argument" if name in trace.nodes else name] = array
    return result


def _named_arguments(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    function = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        signature = inspect.signature(function)
        bound = signature.bind(*args, **kwargs)
    except (TypeError, ValueError):
        named = {**{f"arg{i}": value for i, value in enumerate(args)}, **kwargs}
    else:
        named = {}
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                named.update({f"arg{len(args) - len(value) + i}": item for i, item in enumerate(value)})
            elif kind is inspect.Parameter.VAR_KEYWORD:
                named.update(value)
            else:
                named[name] = value
    flat: dict[str, Any] = {}
    for name, value in named.items():
        entries = value if isinstance(value, Mapping) else {name: value}
        for key, entry in entries.items():
            flat[key if isinstance(key, str) and key not in flat else f"{name}_{key}"] = entry
    return flat


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")


# -- dimensions -------------------------------------------------------------------------------------------


def plate_dims(trace: Trace) -> dict[str, dict[int, tuple[str, int]]]:
    """Site -> axis of its value, counted from the right (negative) -> name and size of the plate that it is."""
    result: dict[str, dict[int, tuple[str, int]]] = {}
    loose = predictive.deterministic_sites(trace)
    for site, node in trace.nodes.items():
        if node["type"] != "sample":
            continue
        shape = node["value"].shape
        # pyro.deterministic counts all axes as event dimensions unless it is told otherwise.
        event_dim = node["fn"].event_dim
        if site in loose and event_dim == len(shape):
            event_dim = 0
        axes = {f.dim - event_dim: (f.name, f.size) for f in node["cond_indep_stack"] if f.vectorized}
        result[site] = {a: plate for a, plate in axes.items() if -a <= len(shape) and shape[a] == plate[1]}
    return result


def dimensions(
    shapes: Mapping[str, tuple[int, ...]],
    plates: Mapping[str, Mapping[int, tuple[str, int]]],
    dims: Mapping[str, Sequence[str]] | None,
    coords: Mapping[str, Sequence[Any]] | None,
) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """Names of all axes of all variables, and the labels along them.

    An axis is called as ``dims`` says, else by its plate, else ``{variable}_dim_{i}`` as in ArviZ. A plate's name
    is passed over if it is a variable's too, reserved, or given to an axis of another length by ``dims``.

    Raises:
        ValueError: ``dims`` or ``coords`` names an unknown variable or dimension, has another length than what
            it describes, or gives a name twice.
    """
    given = _checked(shapes, {} if dims is None else dims)
    lengths: dict[str, int] = {}
    for variable, names in given.items():
        for name, length in zip(names, shapes[variable], strict=True):
            if lengths.setdefault(name, length) != length:
                raise ValueError(f"dims gives the name {name!r} to axes of lengths {lengths[name]} and {length}")
    sizes = {name: length for axes in plates.values() for name, length in axes.values()}
    usable = {name for name, length in sizes.items() if lengths.get(name, length) == length}
    usable -= _RESERVED.union(shapes)
    result: dict[str, list[str]] = {}
    for variable, shape in shapes.items():
        own = plates.get(variable, {})
        names = [own.get(i - len(shape), ("", 0))[0] for i in range(len(shape))]
        default = [name if name in usable else f"{variable}_dim_{i}" for i, name in enumerate(names)]
        result[variable] = list(given.get(variable, default))
        lengths.update(zip(result[variable], shape, strict=True))
    return result, _labels(lengths, {} if coords is None else coords)


def _checked(shapes: Mapping[str, tuple[int, ...]], dims: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    for variable, names in dims.items():
        if variable not in shapes:
            raise ValueError(f"dims has {variable!r}, which is no variable; there are {sorted(shapes)}")
        if (
            isinstance(names, str)
            or not isinstance(names, Sequence)
            or not all(isinstance(name, str) for name in names)
        ):
            raise ValueError(f"dims[{variable!r}] must be a list of dimension names, found {names!r}")
        if len(names) != len(shapes[variable]):
            raise ValueError(
                f"dims[{variable!r}] must name the {len(shapes[variable])} axes of shape {shapes[variable]}, "
                f"found {list(names)}"
            )
        for name in names:
            if name in _RESERVED or name in shapes:
                what = "has a meaning of its own in ArviZ" if name in _RESERVED else "is a variable's name"
                raise ValueError(f"dims[{variable!r}] has {name!r}, which {what}; choose another name")
        if len(set(names)) < len(names):
            raise ValueError(f"dims[{variable!r}] has a name twice: {list(names)}")
    return dims


def _labels(lengths: Mapping[str, int], coords: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    labels = {}
    for name, values in coords.items():
        if name not in lengths:
            raise ValueError(f"coords has {name!r}, which is no dimension; there are {sorted(lengths)}")
        labels[name] = _array(values) if isinstance(values, Tensor) else np.asarray(values)
        if labels[name].shape != (lengths[name],):
            raise ValueError(
                f"coords[{name!r}] must hold {lengths[name]} labels, one for each entry along the dimension, "
                f"found shape {labels[name].shape}"
            )
    return labels


def _shapes(groups: Groups) -> dict[str, tuple[int, ...]]:
    """Shape of each variable without chain and draw: the shortest, where observations and predictions differ."""
    result: dict[str, tuple[int, ...]] = {}
    for group in ("posterior", "observed_data", "constant_data", "posterior_predictive", "prior_predictive"):
        for name, value in groups.get(group, {}).items():
            shape = value.shape if group.endswith("_data") else value.shape[2:]
            if name not in result or len(shape) < len(result[name]):
                result[name] = shape
    return result


# -- arrays -------------------------------------------------------------------------------------------------


def _array(value: Tensor | np.ndarray) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _with_chain(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: _array(value)[None] for name, value in values.items()}
