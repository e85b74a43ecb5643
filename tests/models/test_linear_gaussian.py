"""The linear-Gaussian laws, against SciPy, sums over draws and identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyro.distributions import MultivariateNormal
from scipy import stats
from torch import Tensor

from models.linear_gaussian import (
    Laws,
    LinearConditional,
    LinearDecoder,
    LinearEncoder,
    laws_of,
    linear_vae,
)

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def covariance(n: int) -> Tensor:
    root = torch.randn(n, n, dtype=torch.float64)
    return root @ root.mT + 0.3 * torch.eye(n, dtype=torch.float64)


@torch.no_grad()
def some_laws(n: int = 3, d: int = 2) -> Laws:
    """Laws of a decoder, encoder and data that have nothing to do with each other."""
    decoder, encoder = LinearDecoder(d, n), LinearEncoder(n, d)
    with torch.no_grad():
        for p in (*decoder.parameters(), *encoder.parameters()):
            p.normal_(0.0, 0.6)
    return laws_of(decoder, MultivariateNormal(torch.randn(n).double(), covariance(n)), encoder)


def scipy_log_prob(law: MultivariateNormal, value: Tensor) -> Tensor:
    found = stats.multivariate_normal(law.loc.numpy(), law.covariance_matrix.numpy())
    return torch.as_tensor(found.logpdf(value.numpy()))


def kl_by_entropies(p: MultivariateNormal, q: MultivariateNormal) -> float:
    """KL of Gaussians from SciPy's entropy and an expectation in NumPy."""
    loc, cov = p.loc.numpy(), p.covariance_matrix.numpy()
    other, inverse = q.covariance_matrix.numpy(), np.linalg.inv(q.covariance_matrix.numpy())
    away = loc - q.loc.numpy()
    cross = 0.5 * (np.trace(inverse @ cov) + away @ inverse @ away + np.linalg.slogdet(2.0 * np.pi * other)[1])
    return float(cross - stats.multivariate_normal(loc, cov).entropy())


def test_marginals_and_joints_are_those_of_draws() -> None:
    laws, n = some_laws(), 400_000
    z = laws.prior.sample((n,))
    decoded = torch.cat([laws.decoding.given(z).sample(), z], -1)
    x = laws.data.sample((n,))
    encoded = torch.cat([x, laws.encoding.given(x).sample()], -1)
    for law, draws in ((laws.decoded, decoded), (laws.encoded, encoded)):
        scale = law.covariance_matrix.diagonal().sqrt()
        assert ((draws.mean(0) - law.loc).abs() < 5.0 * scale / n**0.5).all()
        error = (draws.mT.cov() - law.covariance_matrix).abs() / (scale.unsqueeze(-1) * scale)
        assert (error < 5.0 * (2.0 / n) ** 0.5).all()
    for joint, x_law, z_law in ((laws.decoded, laws.evidence, laws.prior), (laws.encoded, laws.data, laws.aggregate)):
        torch.testing.assert_close(joint.loc, torch.cat([x_law.loc, z_law.loc]), **EXACT)
        torch.testing.assert_close(joint.covariance_matrix[:3, :3], x_law.covariance_matrix, **EXACT)
        torch.testing.assert_close(joint.covariance_matrix[3:, 3:], z_law.covariance_matrix, **EXACT)


def test_the_posterior_obeys_bayes_rule() -> None:
    laws = some_laws()
    x, z = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    joint = scipy_log_prob(laws.decoded, torch.cat([x, z], -1))
    expected = joint - scipy_log_prob(laws.evidence, x)
    torch.testing.assert_close(laws.posterior.given(x).log_prob(z), expected, **EXACT)


def test_ratios_are_differences_of_scipys_log_densities() -> None:
    laws = some_laws()
    x, z = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    both = torch.cat([x, z], -1)
    f1 = scipy_log_prob(laws.encoded, both) - scipy_log_prob(laws.evidence, x) - scipy_log_prob(laws.prior, z)
    f2 = scipy_log_prob(laws.decoded, both) - scipy_log_prob(laws.data, x) - scipy_log_prob(laws.aggregate, z)
    torch.testing.assert_close(laws.encoded_ratio(x, z), f1, **EXACT)
    torch.testing.assert_close(laws.decoded_ratio(x, z), f2, **EXACT)


def test_divergences() -> None:
    laws = some_laws()
    assert float(laws.kl_data()) == pytest.approx(kl_by_entropies(laws.data, laws.evidence))
    assert float(laws.kl_aggregate()) == pytest.approx(kl_by_entropies(laws.aggregate, laws.prior))
    assert float(laws.kl_encoded()) == pytest.approx(kl_by_entropies(laws.encoded, laws.decoded))
    assert float(laws.kl_decoded()) == pytest.approx(kl_by_entropies(laws.decoded, laws.encoded))
    # The chain rule, in which the divergence of the conditionals is the only one not taken from SciPy.
    rest = float(laws.kl_encoded()) - float(laws.kl_data())
    assert float(laws.kl_posterior()) == pytest.approx(rest)


@torch.no_grad()
def test_nothing_diverges_at_the_truth() -> None:
    decoder = LinearDecoder(2, 3)
    decoding = decoder.conditional()
    prior = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    laws = laws_of(decoder, decoding.marginal(prior), decoding.reverse(prior))
    for kl in (laws.kl_data, laws.kl_aggregate, laws.kl_posterior, laws.kl_encoded, laws.kl_decoded):
        assert abs(float(kl())) < 1e-9
    x, z = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    torch.testing.assert_close(laws.encoded_ratio(x, z), laws.decoded_ratio(x, z), **EXACT)


def test_modules_have_the_laws_that_they_say() -> None:
    decoder, encoder = LinearDecoder(2, 3).double(), LinearEncoder(3, 2).double()
    with torch.no_grad():
        for p in (*decoder.parameters(), *encoder.parameters()):
            p.normal_()
    vae = linear_vae(decoder)
    x, z = torch.randn(4, 5, 3).double(), torch.randn(4, 5, 2).double()
    log_likelihood = vae.likelihood(vae.decoder(z)).log_prob(x)
    torch.testing.assert_close(log_likelihood, decoder.conditional().given(z).log_prob(x), **EXACT)
    log_q = encoder.posterior(x[0]).log_prob(z)
    torch.testing.assert_close(log_q, encoder.conditional().given(x[0]).log_prob(z), **EXACT)


def test_closed_forms_have_gradients_to_every_parameter() -> None:
    decoder, encoder = LinearDecoder(2, 3), LinearEncoder(3, 2)
    laws = laws_of(decoder, MultivariateNormal(torch.ones(3), 2.0 * torch.eye(3)), encoder)
    for kl in (laws.kl_encoded(), laws.kl_decoded()):
        for p in (*decoder.parameters(), *encoder.parameters()):
            (gradient,) = torch.autograd.grad(kl, p, retain_graph=True)
            assert gradient.abs().max() > 1e-3


def test_known_scales_are_not_trained() -> None:
    scales = torch.tensor([0.5, 1.0, 2.0])
    decoder = LinearDecoder(2, 3, scales)
    assert {name for name, _ in decoder.named_parameters()} == {"linear.weight", "linear.bias"}
    torch.testing.assert_close(decoder.conditional().covariance, scales.double().square().diag())
    for wrong in (torch.ones(2), torch.tensor([1.0, 0.0, 1.0])):
        with pytest.raises(ValueError, match="scales must be 3 positive numbers"):
            LinearDecoder(2, 3, wrong)


def test_shapes_that_do_not_fit() -> None:
    eye = torch.eye(2)
    with pytest.raises(ValueError, match=r"bias must have shape \(2,\) with a weight of \(2, 2\), found \(3,\)"):
        LinearConditional(eye, torch.zeros(3), eye)
    with pytest.raises(ValueError, match=r"covariance must have shape \(2, 2\)"):
        LinearConditional(eye, torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"weight must have shape \(m, n\)"):
        LinearConditional(torch.zeros(2), torch.zeros(2), eye)
    with pytest.raises(ValueError, match=r"data must have event shape \(3,\)"):
        laws_of(LinearDecoder(2, 3), MultivariateNormal(torch.zeros(2), eye), LinearEncoder(3, 2))
    with pytest.raises(ValueError, match="encoder must map 3 values to 2"):
        laws_of(LinearDecoder(2, 3), MultivariateNormal(torch.zeros(3), torch.eye(3)), LinearEncoder(3, 1))
