"""The flow encoder's log q against the Jacobian of its map; what the flows are at their start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from torch import Tensor, nn

from models.encoders import GaussianEncoder, MLPBody
from models.flows import Flip, FlowEncoder, autoregressive, couplings, householder, planar

PIXELS, DIM, CONTEXT = 5, 3, 4

TRANSFORMS: dict[str, Callable[[], Sequence[object]]] = {
    "autoregressive": lambda: autoregressive(DIM, CONTEXT, layers=3, hidden=8),
    "couplings": lambda: couplings(DIM, CONTEXT, layers=3, hidden=8),
    "planar-80": lambda: planar(DIM, CONTEXT),
    "householder": lambda: householder(DIM, CONTEXT, length=4),
    "pyro's conditional planar": lambda: [pyro_transforms.conditional_planar(DIM, CONTEXT, [8])],
    "pyro's conditional radial": lambda: [pyro_transforms.conditional_radial(DIM, CONTEXT, [8])],
    "pyro's conditional householder": lambda: [pyro_transforms.conditional_householder(DIM, CONTEXT, [8], 2)],
    "pyro's conditional coupling": lambda: [pyro_transforms.conditional_affine_coupling(DIM, CONTEXT, [8])],
    "pyro's conditional autoregressive": lambda: [
        pyro_transforms.conditional_affine_autoregressive(DIM, CONTEXT, [8], stable=True)
    ],
    "pyro's conditional spline": lambda: [pyro_transforms.conditional_spline(DIM, CONTEXT, [8])],
    "pyro's without context": lambda: [
        pyro_transforms.planar(DIM),
        pyro_transforms.radial(DIM),
        pyro_transforms.householder(DIM),
        pyro_transforms.affine_coupling(DIM, [8]),
        pyro_transforms.affine_autoregressive(DIM, [8]),
        pyro_transforms.Spline(DIM),
    ],
    "both kinds": lambda: [*planar(DIM, CONTEXT, length=2), pyro_transforms.affine_coupling(DIM, [8]), Flip()],
}


@pytest.fixture(params=list(TRANSFORMS))
def encoder(request: pytest.FixtureRequest) -> FlowEncoder:
    """A flow encoder in double precision, moved away from its start."""
    made = FlowEncoder(MLPBody(PIXELS, (8,)), DIM, TRANSFORMS[request.param](), CONTEXT).double()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made


def _map(encoder: FlowEncoder, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The encoder's draw and its log q as functions of the noise."""

    def at(noise: Tensor) -> tuple[Tensor, Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", lambda *shape, **options: noise)
            posterior = encoder.posterior(x)
            z = posterior.rsample(noise.shape[:-2])
            return z, posterior.log_prob(z)

    return at


def test_log_q_is_that_of_the_jacobian(encoder: FlowEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    x = 2.0 * torch.randn(2, PIXELS).double()
    noise = 1.5 * torch.randn(4, 2, DIM).double()
    with torch.no_grad():
        _, log_q = _map(encoder, x, monkeypatch)(noise)
    for i in range(2):
        # One datum and one point at a time: what others are in the batch must not matter.
        alone = _map(encoder, x[i : i + 1], monkeypatch)
        for k in range(4):
            jacobian = torch.autograd.functional.jacobian(
                lambda e, at=alone: at(e.reshape(1, 1, DIM))[0].reshape(DIM), noise[k, i]
            )
            normal = -0.5 * (noise[k, i].square().sum() + DIM * math.log(2.0 * math.pi))
            expected = normal - torch.linalg.slogdet(jacobian).logabsdet
            torch.testing.assert_close(log_q[k, i], expected, rtol=1e-6, atol=1e-6)


def test_gradients_of_log_q_are_right(encoder: FlowEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    # What Pyro's transforms keep between calls must not cut or double the graph.
    at, noise = _map(encoder, torch.randn(2, PIXELS).double(), monkeypatch), torch.randn(1, 2, DIM).double()
    parameter = encoder.head.weight
    (gradient,) = torch.autograd.grad(at(noise)[1].sum() + at(noise)[0].square().sum(), parameter)
    direction, step = torch.randn_like(parameter), 1e-5
    with torch.no_grad():
        values = []
        for sign in (1.0, -1.0):
            parameter += sign * step * direction
            values.append(at(noise)[1].sum() + at(noise)[0].square().sum())
            parameter -= sign * step * direction
    numerical = (values[0] - values[1]) / (2.0 * step)
    torch.testing.assert_close((gradient * direction).sum(), numerical, rtol=1e-5, atol=1e-5)


WITHOUT_INVERSE = ["planar-80", "pyro's conditional planar", "pyro's conditional radial", "both kinds"]
INVERTIBLE = {
    name: make for name, make in TRANSFORMS.items() if name not in [*WITHOUT_INVERSE, "pyro's without context"]
}
INVERTIBLE["pyro's without context, invertible"] = lambda: [
    pyro_transforms.householder(DIM),
    pyro_transforms.affine_coupling(DIM, [8]),
    pyro_transforms.affine_autoregressive(DIM, [8]),
    pyro_transforms.Spline(DIM),
    Flip(),
]


def _moved(transforms: Sequence[object]) -> FlowEncoder:
    made = FlowEncoder(MLPBody(PIXELS, (8,)), DIM, transforms, CONTEXT).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made


@pytest.mark.parametrize("name", list(INVERTIBLE))
def test_the_density_elsewhere_is_that_of_draws(name: str) -> None:
    # At copies of its draws the density must be what came with them, whose Jacobian is tested above.
    encoder, x = _moved(INVERTIBLE[name]()), 2.0 * torch.randn(2, PIXELS).double()
    with torch.no_grad():
        posterior = encoder.posterior(x)
        z = posterior.rsample(torch.Size((5, 4)))
        log_q = posterior.log_prob(z)
        torch.testing.assert_close(posterior.log_prob(z.clone()), log_q, rtol=1e-7, atol=1e-7)
        # Single points, and neither order nor what was asked before matters.
        alone = encoder.posterior(x[1:])
        torch.testing.assert_close(alone.log_prob(z[2, 3, 1:].clone()), log_q[2, 3, 1:], rtol=1e-7, atol=1e-7)
    for transform in encoder.transforms:
        parts = transform.modules() if isinstance(transform, nn.Module) else [transform]
        assert all(getattr(part, "_cached_x_y", (None, None)) == (None, None) for part in parts)


@pytest.mark.parametrize("name", ["autoregressive", "couplings", "householder"])
def test_gradients_of_the_density_elsewhere_are_right(name: str) -> None:
    encoder = _moved(INVERTIBLE[name]())
    x, z = torch.randn(2, PIXELS).double().requires_grad_(), torch.randn(3, 2, DIM).double().requires_grad_()
    names, values = zip(*encoder.named_parameters(), strict=True)

    def density(x: Tensor, z: Tensor, *values: Tensor) -> Tensor:
        given = {f"encoder.{key}": value for key, value in zip(names, values, strict=True)}
        return torch.func.functional_call(_LogDensity(encoder), given, (x, z))

    assert torch.autograd.gradcheck(density, (x, z, *values), fast_mode=True)


class _LogDensity(nn.Module):
    def __init__(self, encoder: FlowEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        log_q: Tensor = self.encoder.posterior(x).log_prob(z)
        return log_q


@pytest.mark.parametrize("name", ["autoregressive", "couplings"])
def test_the_density_elsewhere_integrates_to_one(name: str) -> None:
    transforms = {"autoregressive": autoregressive, "couplings": couplings}[name](2, CONTEXT, layers=2, hidden=8)
    encoder = FlowEncoder(MLPBody(PIXELS, (8,)), 2, transforms, CONTEXT).double()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.1 * torch.randn_like(p))
        posterior = encoder.posterior(torch.randn(1, PIXELS).double())
        draws = posterior.rsample(torch.Size((4000,)))[:, 0]
        # The trapezium rule on a box that holds 9 standard deviations.
        n, loc, reach = 401, draws.mean(0), 9.0 * draws.std(0)
        axes = [loc[k] + reach[k] * torch.linspace(-1.0, 1.0, n).double() for k in range(2)]
        grid = torch.cartesian_prod(*axes).unsqueeze(1)
        cell = (4.0 * reach.prod()) / (n - 1) ** 2
        density = posterior.log_prob(grid).exp()
        assert float(density.sum() * cell) == pytest.approx(1.0, abs=1e-6)
        # The law of the draws: means under the density.
        mean = (density * grid[:, 0]).sum(0) * cell
        error = draws.std(0) / math.sqrt(len(draws))
        assert bool(((draws.mean(0) - mean).abs() < 4.5 * error).all())


@pytest.mark.parametrize("name", WITHOUT_INVERSE)
def test_transforms_without_an_inverse_are_named(name: str) -> None:
    posterior = _moved(TRANSFORMS[name]()).posterior(torch.randn(2, PIXELS).double())
    found = r"as transforms\[\d+\]=Conditional(Planar|Radial) has no inverse; couplings, autoregressive and householder"
    with pytest.raises(NotImplementedError, match=found):
        posterior.log_prob(posterior.rsample().clone())


@pytest.mark.parametrize("name", ["autoregressive", "couplings", "planar-80", "householder"])
def test_flows_begin_as_the_gaussian_encoder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = FlowEncoder(MLPBody(PIXELS, (8,)), DIM, TRANSFORMS[name](), CONTEXT)
    gaussian = GaussianEncoder(encoder.body, DIM)
    gaussian.head = encoder.head
    x, noise = torch.randn(2, PIXELS), torch.randn(50, 2, DIM)
    with torch.no_grad():
        z, log_q = _map(encoder, x, monkeypatch)(noise)
        posterior = gaussian.posterior(x)
        start = posterior.mean + posterior.stddev * noise
        gaussian_log_q = posterior.log_prob(start)
    flips = sum(isinstance(t, Flip) for t in encoder.transforms)
    assert float((z - (start.flip(-1) if flips % 2 else start)).abs().max()) < 0.1
    assert float((log_q - gaussian_log_q).abs().max()) < 0.2


def test_a_planar_flow_without_weights_is_the_identity() -> None:
    (transform,) = planar(DIM, CONTEXT, length=1)
    with torch.no_grad():
        transform.nn.linear.weight.zero_()
    z = torch.randn(20, DIM)
    torch.testing.assert_close(transform.condition(torch.randn(20, CONTEXT))(z), z)


def test_a_householder_flow_is_orthogonal() -> None:
    z, context = torch.randn(1, DIM).double(), torch.randn(1, CONTEXT).double()
    transforms = [t.double().condition(context) for t in householder(DIM, CONTEXT, length=3)]

    def flow(point: Tensor) -> Tensor:
        for t in transforms:
            point = t(point)
        return point

    matrix = torch.autograd.functional.jacobian(flow, z).reshape(DIM, DIM)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(DIM).double())
    assert float(torch.linalg.det(matrix)) == pytest.approx(-1.0)


def test_an_autoregressive_flow_moves_all_coordinates_by_the_context() -> None:
    encoder = FlowEncoder(MLPBody(PIXELS, (8,)), DIM, autoregressive(DIM, CONTEXT, layers=2, hidden=8), CONTEXT)
    with torch.no_grad():
        for p in encoder.flow.parameters():
            p.add_(0.5 * torch.randn_like(p))
    (first, second) = encoder.transforms
    z = torch.randn(1, DIM)
    for t in (first, second):
        context = torch.randn(1, CONTEXT, requires_grad=True)
        for coordinate in t.condition(context)(z)[0]:
            (gradient,) = torch.autograd.grad(coordinate, context, retain_graph=True)
            assert bool(gradient.any())


def test_a_draw_leaves_no_graph_behind() -> None:
    transform = pyro_transforms.affine_coupling(DIM, [8])
    encoder = FlowEncoder(MLPBody(PIXELS, (8,)), DIM, [transform])
    encoder.propose(torch.randn(2, PIXELS), 3)
    assert transform._cached_x_y == (None, None)


def test_pyros_sylvester_is_still_to_be_refused() -> None:
    transform = pyro_transforms.Sylvester(DIM, count_transforms=2)
    with torch.no_grad():
        for p in transform.parameters():
            p.copy_(torch.randn_like(p))
    z = torch.randn(DIM)
    true = torch.linalg.slogdet(torch.autograd.functional.jacobian(lambda e: transform(e.clone()), z)).logabsdet
    assert abs(float((transform.log_abs_det_jacobian(z, transform(z)) - true).detach())) > 0.01
    with pytest.raises(ValueError, match=r"transforms\[0\]: Pyro's Sylvester gives the log-determinant of another map"):
        FlowEncoder(nn.Linear(2, 2), DIM, [transform])


def test_errors() -> None:
    body = MLPBody(PIXELS, (8,))
    with pytest.raises(TypeError, match="transforms must be a list of Pyro transforms, found Flip"):
        FlowEncoder(body, DIM, Flip())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="transforms must have at least one transform"):
        FlowEncoder(body, DIM, [])
    with pytest.raises(TypeError, match=r"transforms\[1\] must be a Pyro transform, found Linear"):
        FlowEncoder(body, DIM, [Flip(), nn.Linear(2, 2)])
    with pytest.raises(ValueError, match=r"transforms\[0\] is conditional: say by context_dim"):
        FlowEncoder(body, DIM, planar(DIM, CONTEXT, length=1))
    for make in (autoregressive, couplings):
        with pytest.raises(ValueError, match="latent_dim must be at least 2, found 1"):
            make(1, CONTEXT)
