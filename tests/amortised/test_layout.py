"""PlateLayout: one datum's sites in one vector, against torch's transforms and numerical Jacobians."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from avbvi import ModelError
from avbvi.amortised import PlateLayout

EXACT = {"atol": 1e-9, "rtol": 1e-9}
N = 4


@pytest.fixture(autouse=True)
def float64() -> None:
    """Double precision, so that identities hold to rounding."""
    torch.set_default_dtype(torch.float64)


def several(plate_dim: int = -1) -> None:
    with pyro.plate("data", N, dim=plate_dim):
        pyro.sample("real", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("scale", dist.Gamma(2.0, 1.0))
        pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        pyro.sample("matrix", dist.LogNormal(torch.zeros(2, 2), 1.0).to_event(2))
        pyro.sample("share", dist.Uniform(-1.0, 3.0))


def layout_of(model: Any, *args: Any) -> PlateLayout:
    return PlateLayout.from_trace(poutine.trace(model).get_trace(*args))


def free_parts(values: dict[str, Tensor]) -> Tensor:
    """All coordinates of one datum that are not functions of the others."""
    return torch.cat(
        [
            values["real"],
            values["scale"][None],
            values["weights"][:-1],
            values["matrix"].reshape(-1),
            values["share"][None],
        ]
    )


def test_jacobian_is_the_numerical_one_for_every_datum() -> None:
    layout = layout_of(several)
    assert layout.dim == 2 + 1 + 2 + 4 + 1
    z = torch.randn(2, N, layout.dim)
    values, log_det = layout.constrain(z)
    assert log_det.shape == (2, N)
    for s, i in ((0, 0), (1, N - 1)):
        jacobian = torch.autograd.functional.jacobian(
            lambda row: free_parts({k: v[0, 0] for k, v in layout.constrain(row[None, None])[0].items()}), z[s, i]
        )
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[s, i], **EXACT)
    by_site = {site.name: term for site, _, term in layout.each(z)}
    torch.testing.assert_close(by_site["scale"], values["scale"].log(), **EXACT)
    torch.testing.assert_close(sum(by_site.values()), log_det, **EXACT)


def test_unconstrain_inverts_constrain() -> None:
    layout = layout_of(several)
    z = torch.randn(3, N, layout.dim)
    values, log_det = layout.constrain(z)
    assert values["weights"].shape == (3, N, 3)
    assert values["matrix"].shape == (3, N, 2, 2)
    back, other = layout.unconstrain(values)
    torch.testing.assert_close(back, z, **EXACT)
    torch.testing.assert_close(other, log_det, **EXACT)


@pytest.mark.parametrize("plate_dim", [-1, -2, -3])
def test_values_in_their_plate_have_the_models_shapes(plate_dim: int) -> None:
    trace = poutine.trace(several).get_trace(plate_dim)
    layout = PlateLayout.from_trace(trace)
    assert layout.trailing == -plate_dim - 1
    values, _ = layout.constrain(torch.randn(N, layout.dim))
    for site in layout.sites:
        placed = layout.in_plate(values[site.name], site)
        assert placed.shape == trace.nodes[site.name]["value"].shape
        torch.testing.assert_close(layout.out_of_plate(placed, site), values[site.name], **EXACT)


def test_sites_outside_are_refused_with_the_remedy() -> None:
    def unplated() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def both() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(mu, 1.0))

    def nested() -> None:
        with pyro.plate("rows", 2, dim=-2), pyro.plate("data", N, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def two() -> None:
        with pyro.plate("rows", 2, dim=-1):
            pyro.sample("row", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ModelError, match=r"\['z'\] lie in no pyro.plate; sample them inside the plate of the data"):
        layout_of(unplated)
    with pytest.raises(ModelError, match=r"\['mu'\] are global latents beside the local ones \['z'\].*hide=\['mu'\]"):
        layout_of(both)
    with pytest.raises(ModelError, match=r"in one plate.*found \{'z': \['data', 'rows'\]\}.*to_event"):
        layout_of(nested)
    with pytest.raises(ModelError, match=r"in one plate.*'row': \['rows'\], 'z': \['data'\]"):
        layout_of(two)


def test_bad_values_are_named() -> None:
    layout = layout_of(several)
    values, _ = layout.constrain(torch.randn(3, N, layout.dim))
    with pytest.raises(ValueError, match="lack the site 'scale'"):
        layout.unconstrain({"real": values["real"]})
    with pytest.raises(ValueError, match=r"draws\['scale'\] must have shape .*data.*found \(3, 2\)"):
        layout.unconstrain({**values, "scale": values["scale"][:, :2]})
    with pytest.raises(ValueError, match=r"draws\['weights'\] has values outside the site's support"):
        layout.unconstrain({**values, "weights": 2.0 * values["weights"]})
