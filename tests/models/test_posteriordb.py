"""Posteriors of posteriordb: densities against SciPy, reference draws against closed forms and the densities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor
from torch.distributions import constraints

from avbvi import AVBGuide, LogDensity
from avbvi.layout import LatentLayout
from avbvi.targets import UnconstrainedTarget
from models import posteriordb as pdb

ARK = "arK-arK"
EARNINGS = "earnings-log10earn_height"
EIGHT = "eight_schools-eight_schools_noncentered"
KIDIQ = "kidiq-kidscore_momiq"
NAMES = [ARK, EARNINGS, EIGHT, KIDIQ]
# posteriordb states an effective size above 9200 of 10000 for each parameter.
EFFECTIVE = 9200
Data = Mapping[str, Any]
Point = dict[str, Any]

# Mean and sd of the reference draws as printed in the folder's models.md.
TABLE: dict[str, dict[str, tuple[str, str]]] = {
    EIGHT: {
        "theta": ("6.15 4.94 3.91 4.80 3.61 4.05 6.32 4.88", "5.62 4.65 5.28 4.77 4.61 4.80 5.00 5.32"),
        "mu": ("4.41", "3.31"),
        "tau": ("3.60", "3.20"),
    },
    ARK: {
        "alpha": ("-0.0007", "0.0107"),
        "beta": ("0.6922 0.4390 0.1058 -0.0354 -0.3015", "0.0706 0.0873 0.0931 0.0860 0.0699"),
        "sigma": ("0.1506", "0.0078"),
    },
    KIDIQ: {"beta": ("25.92 0.6086", "5.97 0.0590"), "sigma": ("18.28", "0.624")},
    EARNINGS: {"beta": ("2.5105 0.0255", "0.1962 0.0029"), "sigma": ("0.3883", "0.0080")},
}


def raw_data(folder: Path, name: str) -> Data:
    data: Data = json.loads((folder / f"{name.split('-')[0]}.data.json").read_text())
    return data


def eight_schools(data: Data, v: Point) -> float:
    log_p = stats.norm.logpdf(v["mu"], 0.0, 5.0) + stats.halfcauchy.logpdf(v["tau"], scale=5.0)
    log_p += stats.norm.logpdf(v["eta"]).sum()
    return float(log_p + stats.norm.logpdf(data["y"], v["mu"] + v["tau"] * v["eta"], data["sigma"]).sum())


def ark(data: Data, v: Point) -> float:
    log_p = stats.norm.logpdf(v["alpha"], 0.0, 10.0) + stats.norm.logpdf(v["beta"], 0.0, 10.0).sum()
    log_p += stats.halfcauchy.logpdf(v["sigma"], scale=2.5)
    y = data["y"]
    for t in range(5, 200):
        mean = v["alpha"] + sum(v["beta"][k] * y[t - k - 1] for k in range(5))
        log_p += stats.norm.logpdf(y[t], mean, v["sigma"])
    return float(log_p)


def kidiq(data: Data, v: Point) -> float:
    mean = v["beta"][0] + v["beta"][1] * np.array(data["mom_iq"])
    prior = stats.halfcauchy.logpdf(v["sigma"], scale=2.5)
    return float(prior + stats.norm.logpdf(data["kid_score"], mean, v["sigma"]).sum())


def earnings(data: Data, v: Point) -> float:
    mean = v["beta"][0] + v["beta"][1] * np.array(data["height"])
    return float(stats.norm.logpdf(np.log10(data["earn"]), mean, v["sigma"]).sum())


DENSITIES: dict[str, Callable[[Data, Point], float]] = {
    ARK: ark,
    EARNINGS: earnings,
    EIGHT: eight_schools,
    KIDIQ: kidiq,
}


def latents(entry: pdb.Entry) -> dict[str, Tensor]:
    """The reference draws of the sites that are latent in the model."""
    values = dict(entry.reference)
    if entry.name == EIGHT:
        theta = values.pop("theta")
        values["eta"] = (theta - values["mu"][:, None]) / values["tau"][:, None]
    return values


def layout_and_target(entry: pdb.Entry) -> tuple[LatentLayout, UnconstrainedTarget]:
    """What avbvi makes of the model; a guide that can't be set up fails here."""
    guide = AVBGuide(entry.model).setup(*entry.args)
    target = guide.target(*entry.args)
    assert guide.layout is not None
    assert target is not None
    return guide.layout, target


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_target_of_a_guide_is_scipys_density_with_the_jacobian(
    posteriordb: Path, name: str, dtype: torch.dtype
) -> None:
    torch.set_default_dtype(dtype)
    entry = pdb.load(name, posteriordb)
    layout, target = layout_and_target(entry)
    rows = torch.arange(0, 10_000, 1250)
    exact, log_det = (part[rows] for part in layout.unconstrain(latents(entry)))
    # Draws, and points that lie off the posterior.
    z = torch.cat([exact, exact + 0.1 * torch.randn(exact.shape)]).to(dtype)
    values, jacobian = layout.constrain(z.double())
    torch.testing.assert_close(jacobian[:8], log_det, rtol=1e-5, atol=1e-5)
    positive = "tau" if name == EIGHT else "sigma"
    torch.testing.assert_close(jacobian, values[positive].log())
    data = raw_data(posteriordb, name)
    points = [{site: value[i].numpy() for site, value in values.items()} for i in range(len(z))]
    expected = torch.tensor([DENSITIES[name](data, point) for point in points], dtype=torch.float64) + jacobian
    value = target.log_prob(z)
    assert value.dtype == dtype
    # In single precision the residuals of the data, up to 1e3 sds here, are known to 1e-6 or so.
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_reference_draws_have_the_stated_moments(posteriordb: Path, name: str) -> None:
    entry = pdb.load(name, posteriordb)
    assert set(TABLE[name]) == set(entry.reference) == set(entry.sites)
    for site, texts in TABLE[name].items():
        draws = entry.reference[site].reshape(10_000, -1).numpy()
        for text, figures in zip(texts, (draws.mean(0), draws.std(0, ddof=1)), strict=True):
            printed = text.split()
            # Half a unit of the last digit printed.
            unit = [10.0 ** -len(figure.split(".")[1]) for figure in printed]
            deviation = np.abs(figures - [float(figure) for figure in printed])
            assert (deviation <= 0.501 * np.array(unit)).all(), (site, figures, printed)


@pytest.mark.parametrize("name", NAMES)
def test_reference_draws_satisfy_steins_identity_of_the_model(posteriordb: Path, name: str) -> None:
    torch.set_default_dtype(torch.float64)
    entry = pdb.load(name, posteriordb)
    layout, target = layout_and_target(entry)
    original, _ = layout.unconstrain(latents(entry))
    mean, factor = original.mean(0), torch.linalg.cholesky(original.mT.cov())
    # In whitened coordinates, where nearly degenerate directions are seen as well.
    z = torch.linalg.solve_triangular(factor, (original - mean).mT, upper=False).mT.requires_grad_()
    parts = [target.log_prob(mean + part @ factor.mT).sum() for part in z.split(500)]
    (score,) = torch.autograd.grad(torch.stack(parts).sum(), z)
    root = math.sqrt(EFFECTIVE)
    assert float((score.mean(0) / score.std(0)).abs().max()) * root < 4.5
    product = z.detach().unsqueeze(2) * score.unsqueeze(1)
    error = product.std(0) / root
    assert float(((product.mean(0) + torch.eye(z.shape[1])) / error).abs().max()) < 4.5


def design(entry: pdb.Entry, data: Data) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Design matrix, response, prior precision of the coefficients, and their reference draws."""
    if entry.name == ARK:
        y = torch.tensor(data["y"], dtype=torch.float64)
        columns = [torch.ones(195, dtype=torch.float64)] + [y[4 - k : 199 - k] for k in range(5)]
        draws = torch.cat([entry.reference["alpha"][:, None], entry.reference["beta"]], 1)
        return torch.stack(columns, 1), y[5:], torch.eye(6, dtype=torch.float64) / 100.0, draws
    keys = ("mom_iq", "kid_score") if entry.name == KIDIQ else ("height", "earn")
    covariate, response = (torch.tensor(data[key], dtype=torch.float64) for key in keys)
    response = response.log10() if entry.name == EARNINGS else response
    matrix = torch.stack([torch.ones_like(covariate), covariate], 1)
    return matrix, response, torch.zeros(2, 2, dtype=torch.float64), entry.reference["beta"]


@pytest.mark.parametrize("name", [ARK, EARNINGS, KIDIQ])
def test_coefficients_given_sigma_are_conjugate(posteriordb: Path, name: str) -> None:
    entry = pdb.load(name, posteriordb)
    x, y, prior, draws = design(entry, raw_data(posteriordb, name))
    sigma = entry.reference["sigma"][:, None, None]
    precision = x.mT @ x / sigma.square() + prior
    mean = torch.linalg.solve(precision, (x.mT @ y)[:, None] / sigma.square())[..., 0]
    if name != ARK:
        ols = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
        torch.testing.assert_close(mean, ols.expand_as(mean), rtol=1e-7, atol=1e-9)
    # Whitened by the exact conditional law the draws are standard normal.
    standard = (torch.linalg.cholesky(precision).mT @ (draws - mean)[..., None])[..., 0]
    assert float(standard.mean(0).abs().max()) * math.sqrt(EFFECTIVE) < 4.5
    second = standard.mT @ standard / len(standard) - torch.eye(len(prior))
    error = (1.0 + torch.eye(len(prior))).sqrt() / math.sqrt(EFFECTIVE)
    assert float((second / error).abs().max()) < 4.5
    for column in standard.T:
        assert stats.kstest(column, stats.norm.cdf).pvalue > 1e-4


@pytest.mark.parametrize("name", [EARNINGS, KIDIQ])
def test_marginal_of_sigma_under_flat_coefficients(posteriordb: Path, name: str) -> None:
    entry = pdb.load(name, posteriordb)
    x, y, _, _ = design(entry, raw_data(posteriordb, name))
    residual = float((y - x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0]).square().sum())
    draws = entry.reference["sigma"].numpy()
    sigma = np.linspace(0.8 * draws.min(), 1.2 * draws.max(), 4001)
    # Integrating the coefficients out leaves sigma^(2 - n) exp(-residual / (2 sigma^2)).
    log_p = (2 - len(y)) * np.log(sigma) - residual / (2.0 * sigma**2)
    if name == KIDIQ:
        log_p += stats.halfcauchy.logpdf(sigma, scale=2.5)
    cdf = np.exp(log_p - log_p.max()).cumsum()
    cdf /= cdf[-1]
    assert stats.kstest(draws, lambda value: np.interp(value, sigma, cdf)).pvalue > 1e-4


@pytest.mark.parametrize("name", [EARNINGS, KIDIQ])
def test_gradient_vanishes_at_least_squares(posteriordb: Path, name: str) -> None:
    entry = pdb.load(name, posteriordb)
    assert isinstance(entry.model, LogDensity)
    x, y, _, draws = design(entry, raw_data(posteriordb, name))
    ols = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    sigma = torch.tensor([0.5, 1.0, 30.0], dtype=torch.float64)
    beta = ols.expand(3, 2).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(entry.model.evaluate({"beta": beta, "sigma": sigma}).sum(), beta)
    # In units of the gradient one posterior sd away, 1 / sd.
    sd = sigma[:, None] * torch.linalg.inv(x.mT @ x).diagonal().sqrt()
    assert float((gradient * sd).abs().max()) < 1e-6
    moved = (ols + draws.std(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(entry.model.evaluate({"beta": moved, "sigma": sigma[0]}), moved)
    assert float((gradient * sd[0]).abs().min()) > 1.0


@pytest.mark.parametrize("name", [EARNINGS, KIDIQ])
def test_log_density_broadcasts(posteriordb: Path, name: str) -> None:
    entry = pdb.load(name, posteriordb)
    assert isinstance(entry.model, LogDensity)
    values = {site: value[:12] for site, value in entry.reference.items()}
    flat = entry.model.evaluate(values)
    batch = entry.model.evaluate({"beta": values["beta"].view(4, 3, 2), "sigma": values["sigma"].view(4, 3)})
    assert batch.shape == (4, 3)
    torch.testing.assert_close(batch.flatten(), flat)


def test_prior_predictive_of_the_autoregression() -> None:
    pyro.set_rng_seed(1)
    lags = torch.randn(7, 3)
    trace = poutine.trace(pdb.autoregression).get_trace(lags, None)
    trace.compute_log_prob()
    nodes = trace.nodes
    mean = nodes["alpha"]["value"] + lags @ nodes["beta"]["value"]
    expected = torch.distributions.Normal(mean, nodes["sigma"]["value"]).log_prob(nodes["y"]["value"]).sum()
    torch.testing.assert_close(nodes["y"]["log_prob_sum"], expected)
    assert nodes["y"]["value"].shape == (7,)


@pytest.mark.parametrize("name", NAMES)
def test_matrix_columns_and_halves(posteriordb: Path, name: str) -> None:
    entry = pdb.load(name, posteriordb)
    matrix = entry.matrix(entry.reference)
    assert matrix.shape == (10_000, len(entry.columns))
    assert matrix.dtype == torch.float64
    for i, column in enumerate(entry.columns):
        site, _, index = column.removeprefix("log ").removesuffix("]").partition("[")
        value = entry.reference[site][:, int(index) - 1] if index else entry.reference[site]
        expected = value.log() if column.startswith("log ") else value
        torch.testing.assert_close(matrix[:, i], expected, rtol=0.0, atol=1e-14)
    positive = [site for site, (support, _) in entry.sites.items() if support is constraints.positive]
    assert positive == [c.removeprefix("log ") for c in entry.columns if c.startswith("log ")] != []
    with np.load(posteriordb / f"{name}.draws.npz") as arrays:
        for site, first, last in [(s, entry.chains[0][s], entry.chains[1][s]) for s in entry.sites]:
            chains = torch.from_numpy(arrays[site].astype(np.float64))
            assert torch.equal(first, chains[:5].flatten(0, 1))
            assert torch.equal(last, chains[5:].flatten(0, 1))


def test_names_lists_what_is_on_disk(posteriordb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVBVI_POSTERIORDB", str(posteriordb))
    assert set(NAMES) <= set(pdb.names())
    assert pdb.names() == pdb.names(posteriordb) == sorted(pdb.names())
    assert set(NAMES) <= set(pdb.MODELS)


def test_data_of_another_length(posteriordb: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.draws.npz").write_bytes((posteriordb / f"{name}.draws.npz").read_bytes())
        data = dict(raw_data(posteriordb, name))
        key = {ARK: "y", EARNINGS: "height", EIGHT: "sigma", KIDIQ: "kid_score"}[name]
        size = len(data[key])
        data[key] = data[key][:-1]
        (tmp_path / f"{name.split('-')[0]}.data.json").write_text(json.dumps(data))
        with pytest.raises(ValueError, match=rf"{key} must hold {size} numbers, found shape \({size - 1},\)"):
            pdb.load(name, tmp_path)


def test_errors_of_linear_regression() -> None:
    with pytest.raises(ValueError, match=r"vectors of one length, got shapes \(3,\) and \(4,\)"):
        pdb.linear_regression(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="sigma_scale must be positive, got 0"):
        pdb.linear_regression(torch.zeros(3), torch.zeros(3), sigma_scale=0.0)
