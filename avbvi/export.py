"""ArviZ containers, for ArviZ 0.x (InferenceData) and 1.x (DataTree)."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_arviz(
    draws: dict[str, Tensor],
    *,
    log_q: Tensor,
    log_p: Tensor,
    observed: dict[str, Tensor],
    predictive: dict[str, Tensor] | None,
    attributes: dict[str, str],
) -> Any:
    """Draws {site: (n, *shape)} with log q and log p (n,) as an ArviZ container with one chain."""
    az = import_arviz()
    groups: dict[str, dict[str, np.ndarray]] = {
        "posterior": {name: _one_chain(value) for name, value in draws.items()},
        "sample_stats": {"lp": _one_chain(log_p), "log_q": _one_chain(log_q)},
    }
    if observed:
        groups["observed_data"] = {name: _array(value) for name, value in observed.items()}
    if predictive:
        groups["posterior_predictive"] = {name: _one_chain(value) for name, value in predictive.items()}
    attrs = {"inference_library": "avbvi", **attributes}
    if int(az.__version__.split(".")[0]) >= 1:
        container = az.from_dict(groups)
        container["posterior"].attrs.update(attrs)
    else:
        container = az.from_dict(**groups)
        container.posterior.attrs.update(attrs)
    return container


def import_arviz() -> Any:
    """ArviZ, without the notice about its next major version that 0.23 gives on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def _array(value: Tensor) -> np.ndarray:
    return torch.as_tensor(value).detach().cpu().numpy()


def _one_chain(value: Tensor) -> np.ndarray:
    return _array(value)[None]
