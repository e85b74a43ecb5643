"""The layout: constrained values against Pyro's transforms by hand, Jacobians against autograd."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import constraints

from avbvi.layout import LatentLayout


def model() -> None:
    pyro.sample("tau", dist.Gamma(2.0, 3.0))
    pyro.sample("p", dist.Uniform(-1.0, 2.0))
    pyro.sample("w", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    pyro.sample("c", dist.LKJCholesky(3, 1.5))
    pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("outer", 2, dim=-2):
        pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("inner", 3, dim=-1):
            pyro.sample("x", dist.HalfNormal(1.0))


@pytest.fixture
def layout() -> LatentLayout:
    torch.set_default_dtype(torch.float64)
    return LatentLayout.from_trace(prune_subsample_sites(poutine.trace(model).get_trace()))


def free_coordinates(name: str, value: Tensor) -> Tensor:
    """The coordinates that a site's density refers to: all but one of a simplex, below a factor's diagonal."""
    if name == "w":
        return value[..., :-1].flatten()
    if name == "c":
        rows, columns = torch.tril_indices(3, 3, offset=-1)
        return value[..., rows, columns].flatten()
    return value.flatten()


def test_sites_lie_in_the_order_of_the_trace(layout: LatentLayout) -> None:
    assert [(s.name, s.start, s.stop) for s in layout.sites] == [
        ("tau", 0, 1),
        ("p", 1, 2),
        ("w", 2, 4),
        ("c", 4, 7),
        ("b", 7, 9),
        ("a", 9, 11),
        ("x", 11, 17),
    ]
    assert layout.dim == 17
    assert {s.name: (tuple(s.shape), s.event_dim) for s in layout.sites} == {
        "tau": ((), 0),
        "p": ((), 0),
        "w": ((3,), 1),
        "c": ((3, 3), 2),
        "b": ((2,), 1),
        "a": ((2, 1), 0),
        "x": ((2, 3), 0),
    }


def test_values_are_the_transformed_coordinates(layout: LatentLayout) -> None:
    z = torch.randn(5, 17)
    values, _ = layout.constrain(z)
    torch.testing.assert_close(values["tau"], z[:, 0].exp())
    torch.testing.assert_close(values["p"], -1.0 + 3.0 * torch.sigmoid(z[:, 1]))
    torch.testing.assert_close(values["b"], z[:, 7:9])
    torch.testing.assert_close(values["a"], z[:, 9:11].reshape(5, 2, 1))
    torch.testing.assert_close(values["x"], z[:, 11:].exp().reshape(5, 2, 3))
    assert bool(constraints.simplex.check(values["w"]).all())
    assert bool(constraints.corr_cholesky.check(values["c"]).all())


def test_log_det_is_that_of_the_jacobian(layout: LatentLayout) -> None:
    z = torch.randn(5, 17)
    _, log_det = layout.constrain(z)

    def free(row: Tensor) -> Tensor:
        values, _ = layout.constrain(row[None])
        return torch.cat([free_coordinates(name, value) for name, value in values.items()])

    jacobians = torch.stack([torch.autograd.functional.jacobian(free, row) for row in z])
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobians)[1])


def test_unconstrain_undoes_constrain(layout: LatentLayout) -> None:
    z = torch.randn(5, 17)
    values, log_det = layout.constrain(z)
    back, log_det_back = layout.unconstrain({**values, "ignored": torch.zeros(5)})
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(log_det_back, log_det)


def test_draws_are_put_on_the_left_of_the_plates(layout: LatentLayout) -> None:
    values, _ = layout.constrain(torch.randn(5, 17))
    placed = layout.in_plates(values, 2)
    shapes = {name: tuple(value.shape) for name, value in placed.items()}
    assert shapes == {
        "tau": (5, 1, 1),
        "p": (5, 1, 1),
        "w": (5, 1, 1, 3),
        "c": (5, 1, 1, 3, 3),
        "b": (5, 1, 1, 2),
        "a": (5, 2, 1),
        "x": (5, 2, 3),
    }
    assert all(torch.equal(placed[k].flatten(), values[k].flatten()) for k in placed)


def test_unusable_draws_are_refused(layout: LatentLayout) -> None:
    values, _ = layout.constrain(torch.randn(5, 17))
    with pytest.raises(ValueError, match=r"draws lack the site 'w'"):
        layout.unconstrain({k: v for k, v in values.items() if k != "w"})
    with pytest.raises(ValueError, match=r"draws\['b'\] must have shape \(n, 2\), found \(5, 3\)"):
        layout.unconstrain({**values, "b": torch.zeros(5, 3)})
    for name, value in (("tau", -values["tau"]), ("w", 2.0 * values["w"]), ("b", values["b"] * torch.nan)):
        with pytest.raises(ValueError, match=rf"draws\['{name}'\] has values outside the site's support"):
            layout.unconstrain({**values, name: value})


def test_coordinates_are_named_by_their_unconstrained_place():
    def model() -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 2):
            pyro.sample("share", dist.Dirichlet(torch.ones(3)))

    trace = prune_subsample_sites(poutine.trace(model).get_trace())
    layout = LatentLayout.from_trace(trace)
    # Three shares that sum to one have two unconstrained coordinates.
    assert layout.coordinate_names == ["mu", "share[0, 0]", "share[0, 1]", "share[1, 0]", "share[1, 1]"]
    assert len(layout.coordinate_names) == layout.dim
