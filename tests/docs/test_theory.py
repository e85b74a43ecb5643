"""The equations of docs/theory: which are cited, by which numbers, and that they hold.

On finite sets all expectations are sums, so that identities hold to rounding for any laws: here random tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor
from torch.nn.functional import logsigmoid

import avbvi
from tests.docs.scripts import loaded

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "theory").glob("*.md"))
CITED = re.compile(r"\b(AVB|AS-VAE|avbvi) (\d+(?:\.\d+)?(?:, \d+(?:\.\d+)?)*)(?=[^\d.]|\.\D)")

#: What the numbers stand for in the papers (or, "avbvi", on these pages) and where it is tested: a test of this file,
#: or one elsewhere with its path; an empty text where there is nothing to test in a definition or a wish.
EQUATIONS: dict[str, tuple[str, str]] = {
    "AVB 2.1": ("the ELBO bounds log p(x)", "test_the_elbo_is_the_evidence_less_kl"),
    "AVB 2.2": ("and attains it at the posterior", "test_the_elbo_is_the_evidence_less_kl"),
    "AVB 2.3": ("the expected log-likelihood", ""),
    "AVB 2.4": ("the ELBO as objective of model and encoder", "test_the_elbo_is_the_evidence_less_kl"),
    "AVB 3.1": ("the same with log p(z) - log q written out", "test_the_elbo_is_the_evidence_less_kl"),
    "AVB 3.2": ("the term that a sampler lacks", ""),
    "AVB 3.3": ("logistic loss of the adversary", "test_the_best_adversary_of_logistic_loss"),
    "AVB 3.4": ("T* = log q - log p (Proposition 1)", "test_the_best_adversary_of_logistic_loss"),
    "AVB 3.5": ("the ELBO with T*", "test_the_elbo_with_the_best_adversary"),
    "AVB 3.6": ("E_q grad T* = 0 (Proposition 2)", "test_the_best_adversary_moves_on_average_by_nothing"),
    "AVB 3.7": ("grad T* = grad log q", "test_the_best_adversary_moves_on_average_by_nothing"),
    "AVB 3.8": ("the mean of a score is zero", "test_the_best_adversary_moves_on_average_by_nothing"),
    "AVB 3.9": ("the objective in terms of noise", "test_the_path_gradient_is_the_elbos"),
    "AVB 3.10": ("T* at an equilibrium (Proposition 3)", "test_the_best_adversary_of_logistic_loss"),
    "AVB 3.11": ("pointwise mutual information (Corollary 4)", "test_at_the_posterior_t_is_mutual_information"),
    "AVB 4.1": ("the ELBO with a contrast", "test_a_contrast_changes_nothing"),
    "AVB 4.2": ("the same with T*", "test_a_contrast_changes_nothing"),
    "AVB 4.3": ("KL in whitened coordinates", "test_ratios_do_not_change_under_a_trunk"),
    "AVB 6.1": ("the term that an AAE replaces", ""),
    "AVB 6.2": ("what an AAE aims at", ""),
    "AVB 6.3": ("loss of an adversary that does not see x", "test_an_adversary_that_does_not_see_the_data"),
    "AVB 6.4": ("its optimum", "test_an_adversary_that_does_not_see_the_data"),
    "AVB 6.5": ("the aggregate at convergence", ""),
    "AVB 6.6": ("f-divergences", "test_kl_is_the_f_divergence_of_t_log_t"),
    "AVB 6.7": (
        "their variational form",
        "tests/test_objectives.py::test_the_bound_is_attained_by_the_log_ratio_of_two_normals",
    ),
    "AVB 6.8": ("of KL(q, p)", "test_kl_is_the_f_divergence_of_t_log_t"),
    "AVB 6.9": ("the zero-sum game", "test_the_game_of_kl_has_the_evidence_as_its_value"),
    "AVB 6.10": ("its adversary", "tests/test_objectives.py::test_the_loss_of_equation_6_10_is_as_printed"),
    "AVB 7.1": ("(3.3) as an integral", "test_the_best_adversary_of_logistic_loss"),
    "AVB 7.2": ("a log t + b log(1 - t)", "test_the_best_adversary_of_logistic_loss"),
    "AVB 7.3": ("sigmoid of T*", "test_the_best_adversary_of_logistic_loss"),
    "AVB 7.4": ("(3.4) again", "test_the_best_adversary_of_logistic_loss"),
    "AVB 7.10": ("the noise basis", "tests/amortised/test_samplers.py::test_moments_of_a_linear_basis_are_exact"),
    "AVB 7.11": ("its mean", "tests/amortised/test_samplers.py::test_moments_of_a_linear_basis_are_exact"),
    "AVB 7.12": ("its variance", "tests/amortised/test_samplers.py::test_moments_of_a_linear_basis_are_exact"),
    "AS-VAE 1": ("the ELBO by conditional laws", "test_the_elbo_is_a_divergence_of_joint_laws"),
    "AS-VAE 2": ("and by joint laws", "test_the_elbo_is_a_divergence_of_joint_laws"),
    "AS-VAE 3": (
        "ALI",
        "tests/joint/test_linear_gaussian.py::test_gradient_of_adversarial_inference_is_that_of_scores",
    ),
    "AS-VAE 4": (
        "logistic loss of joint laws (Lemma 1)",
        "tests/joint/test_games.py::test_a_game_learns_the_log_ratio_with_its_sign",
    ),
    "AS-VAE 5": (
        "adversary of encoded pairs",
        "tests/joint/test_games.py::test_both_samples_of_a_game_have_their_laws",
    ),
    "AS-VAE 6": (
        "adversary of decoded pairs",
        "tests/joint/test_games.py::test_both_samples_of_a_game_have_their_laws",
    ),
    "AS-VAE 7": ("f1* and f2*", "test_the_halves_of_as_vae"),
    "AS-VAE 8": ("AS-VAE-r", "test_the_halves_of_as_vae"),
    "AS-VAE 9": ("AS-VAE-g", "test_the_halves_of_as_vae"),
    "AS-VAE 10": ("their sum", "tests/joint/test_linear_gaussian.py::test_value_with_exact_adversaries"),
    "AS-VAE 11": ("reparameterised", "tests/joint/test_linear_gaussian.py::test_gradient_with_exact_adversaries"),
    "AS-VAE 12": ("the game", "tests/joint/test_linear_gaussian.py::test_no_gradient_is_left_at_the_truth"),
    "avbvi 1": (
        "log q = T + log r",
        "tests/test_distributions.py::test_own_draws_have_their_density_without_an_inverse",
    ),
    "avbvi 2": ("error of a learned ELBO", "test_a_learned_elbo_is_off_by_the_mean_error_of_t"),
    "avbvi 3": ("ratios under a trunk", "test_ratios_do_not_change_under_a_trunk"),
    "avbvi 4": ("the hint", "tests/test_adversaries.py::test_with_a_hint_t_starts_as_the_squashed_centred_hint"),
    "avbvi 5": ("contrasts of joint laws", "test_the_contrasts_of_as_vae_leave_little_to_learn"),
}


def test_every_equation_that_is_cited_is_on_the_list() -> None:
    cited = {
        f"{paper} {number}"
        for page in PAGES
        for paper, numbers in CITED.findall(page.read_text("utf-8"))
        for number in numbers.split(", ")
    }
    assert cited == set(EQUATIONS)


@pytest.mark.parametrize("equation", [equation for equation, (_, test) in EQUATIONS.items() if test])
def test_the_test_of_an_equation_exists(equation: str) -> None:
    path, _, name = EQUATIONS[equation][1].rpartition("::")
    text = (ROOT / path if path else Path(__file__)).read_text("utf-8")
    assert f"\ndef {name}(" in text


# -- figures --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    return loaded("figures/theory.py")


def test_each_figure_is_drawn_shown_and_small(drawing: ModuleType) -> None:
    shown = {
        name for page in PAGES for name in re.findall(r"\]\(\.\./images/(theory_\w+)\.svg\)", page.read_text("utf-8"))
    }
    saved = {path.stem: path.stat().st_size for path in drawing.FOLDER.glob("theory_*")}
    assert set(drawing.FIGURES) == shown == set(saved)
    assert max(saved.values()) < 300 * 1024


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("dim", [1, 10, 40])
def test_the_figure_of_neighbours_has_the_divergence_that_it_states(
    drawing: ModuleType, dim: int, narrow: bool
) -> None:
    s = drawing.sd_for_kl(0.5, dim, narrow=narrow)
    assert (s < 1.0) == narrow
    zeros, ones = torch.zeros(dim, dtype=torch.float64), torch.ones(dim, dtype=torch.float64)
    q, p = torch.distributions.Normal(zeros, s * ones), torch.distributions.Normal(zeros, ones)
    close(torch.distributions.kl_divergence(q, p).sum(), 0.5, 1e-9)


def test_the_figure_of_the_ring_knows_its_evidence(drawing: ModuleType) -> None:
    grid = torch.linspace(-4.0, 4.0, 1601, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)
    close(drawing.ring_log_prob(z).flatten().logsumexp(0) + 2.0 * math.log(0.005), drawing.ring_log_z(), 1e-6)


# -- laws on finite sets ----------------------------------------------------------------------------------


class Laws(NamedTuple):
    """log p(z) (Z,), log p(x | z) (X, Z), log q(x) (X,), logits (X, Z) of q(z | x) with a gradient."""

    prior: Tensor
    likelihood: Tensor
    data: Tensor
    logits: Tensor

    @property
    def encoder(self) -> Tensor:
        return self.logits.log_softmax(-1)

    @property
    def joint(self) -> Tensor:
        """log p(x, z)."""
        return self.prior + self.likelihood

    @property
    def evidence(self) -> Tensor:
        """log p(x) (X,)."""
        return self.joint.logsumexp(-1)

    @property
    def encoded(self) -> Tensor:
        """log q(x, z)."""
        return self.data[:, None] + self.encoder

    @property
    def aggregate(self) -> Tensor:
        """log q(z) (Z,)."""
        return self.encoded.logsumexp(0)

    def elbo(self) -> Tensor:
        """(AVB 2.4): minus KL to the prior plus the expected log-likelihood, averaged over the data."""
        return mean(self.data, -kl(self.encoder, self.prior) + mean(self.encoder, self.likelihood))


def mean(log_law: Tensor, values: Tensor) -> Tensor:
    """Expectation of values over the last dimension."""
    return (log_law.exp() * values).sum(-1)


def kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q, p) over the last dimension."""
    return mean(log_q, log_q - log_p)


@pytest.fixture
def laws() -> Laws:
    x, z = 4, 6
    return Laws(
        torch.randn(z, dtype=torch.float64).log_softmax(0),
        torch.randn(x, z, dtype=torch.float64).log_softmax(0),
        torch.randn(x, dtype=torch.float64).log_softmax(0),
        torch.randn(x, z, dtype=torch.float64, requires_grad=True),
    )


def best(q: Tensor, r: Tensor, start: Tensor | None = None) -> Tensor:
    """The T that minimises avbvi's logistic loss of laws q and r (tables of logarithms), by Newton's steps."""
    loss = avbvi.Logistic()
    t = torch.zeros_like(q) if start is None else start
    for _ in range(60):
        t = t.detach().requires_grad_()
        (r.exp() * loss.conjugate(t) - q.exp() * loss.activated(t)).sum().backward()
        assert t.grad is not None
        curvature = (q.exp() + r.exp()) * torch.sigmoid(t) * torch.sigmoid(-t)
        t = t - (t.grad / curvature).clamp(-1.0, 1.0)
    return t.detach()


def close(a: Tensor | float, b: Tensor | float, tolerance: float = 1e-12) -> None:
    a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (a, b))
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# -- variational Bayes --------------------------------------------------------------------------------------


def test_the_elbo_is_the_evidence_less_kl(laws: Laws) -> None:
    posterior = laws.joint - laws.evidence[:, None]
    each = -kl(laws.encoder, laws.prior) + mean(laws.encoder, laws.likelihood)
    assert bool((each < laws.evidence).all())
    close(each, laws.evidence - kl(laws.encoder, posterior))
    at_posterior = laws._replace(logits=posterior)
    close(at_posterior.elbo(), mean(laws.data, laws.evidence))
    close(laws.elbo(), mean(laws.data, mean(laws.encoder, laws.prior - laws.encoder + laws.likelihood)))


def test_the_best_product_of_marginals_has_the_conditional_variances() -> None:
    precision = torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.float64).inverse()

    def divergence(log_sd: Tensor) -> Tensor:
        """KL of independent normals and N(0, precision^-1), by the formula for normals."""
        trace = (precision.diagonal() * (2.0 * log_sd).exp()).sum()
        return 0.5 * (trace - 2.0 - precision.logdet()) - log_sd.sum()

    best_sd = -0.5 * precision.diagonal().log()
    close(torch.func.grad(divergence)(best_sd), torch.zeros(2, dtype=torch.float64))
    value = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    close(divergence(best_sd), value)
    # What the page says of it.
    assert round(float((-best_sd[0]).exp()), 1) == 3.2
    assert round(float(value), 2) == 1.16


def test_one_of_two_modes_is_log_2_away() -> None:
    z = torch.linspace(-20.0, 20.0, 40_001, dtype=torch.float64)

    def normal(loc: float) -> Tensor:
        return -0.5 * (z - loc).square() - 0.5 * math.log(2.0 * math.pi)

    p = torch.logaddexp(normal(-8.0), normal(8.0)) - math.log(2.0)
    close(torch.trapezoid(normal(8.0).exp() * (normal(8.0) - p), z), math.log(2.0), 1e-9)


# -- AVB ------------------------------------------------------------------------------------------------------


def test_the_best_adversary_of_logistic_loss(laws: Laws) -> None:
    q, p = laws.encoded.detach(), laws.data[:, None] + laws.prior
    t = best(q, p)
    close(t, laws.encoder.detach() - laws.prior, 1e-9)
    close(torch.sigmoid(t), laws.encoder.detach().exp() / (laws.encoder.detach().exp() + laws.prior.exp()), 1e-9)

    def objective(t: Tensor) -> Tensor:
        """(AVB 3.3) as printed."""
        return (q.exp() * torch.sigmoid(t).log() + p.exp() * (1.0 - torch.sigmoid(t)).log()).sum()

    for step in (0.1, -0.1):
        assert objective(t + step * torch.randn_like(t)) < objective(t)


def test_the_elbo_with_the_best_adversary(laws: Laws) -> None:
    t = laws.encoder - laws.prior
    close(laws.elbo(), mean(laws.data, mean(laws.encoder, laws.likelihood - t)))


def test_the_best_adversary_moves_on_average_by_nothing(laws: Laws) -> None:
    t = laws.encoder - laws.prior
    weights = laws.encoded.exp().detach()
    (gradient,) = torch.autograd.grad((weights * t).sum(), laws.logits)
    close(gradient, torch.zeros_like(gradient))
    # At a single pair it does move.
    (single,) = torch.autograd.grad((laws.encoder - laws.prior)[0, 0], laws.logits)
    assert float(single.abs().max()) > 0.01


def gauss_hermite(points: int = 60) -> tuple[Tensor, Tensor]:
    """Nodes and weights of expectations under a standard normal."""
    nodes, weights = (torch.from_numpy(x) for x in hermegauss(points))
    return nodes, weights / weights.sum()


def test_the_path_gradient_is_the_elbos() -> None:
    nodes, weights = gauss_hermite()
    parameters = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)

    def log_p(z: Tensor) -> Tensor:
        return -0.25 * z**4 + 0.3 * z

    def log_q(z: Tensor, loc: Tensor, log_sd: Tensor) -> Tensor:
        return -0.5 * ((z - loc) / log_sd.exp()).square() - log_sd - 0.5 * math.log(2.0 * math.pi)

    def log_r(z: Tensor) -> Tensor:
        return -0.5 * z.square() - 0.5 * math.log(2.0 * math.pi)

    loc, log_sd = parameters
    z = loc + log_sd.exp() * nodes
    elbo = (weights * (log_p(z) - log_q(z, loc, log_sd))).sum()
    (exact,) = torch.autograd.grad(elbo, parameters, retain_graph=True)
    fixed = parameters.detach()
    t = log_q(z, *fixed) - log_r(z)
    (path,) = torch.autograd.grad((weights * (log_p(z) - log_r(z) - t)).sum(), parameters)
    close(path, exact, 1e-9)


def test_at_the_posterior_t_is_mutual_information(laws: Laws) -> None:
    posterior = laws.joint - laws.evidence[:, None]
    close(posterior - laws.prior, laws.joint - laws.evidence[:, None] - laws.prior)
    close(posterior - laws.prior, laws.likelihood - laws.evidence[:, None])


def test_a_contrast_changes_nothing(laws: Laws) -> None:
    r = torch.randn(laws.logits.shape, dtype=torch.float64, requires_grad=True)
    contrast = r.log_softmax(-1)
    with_kl = mean(laws.data, -kl(laws.encoder, contrast) + mean(laws.encoder, laws.joint - contrast))
    close(with_kl, laws.elbo())
    t = best(laws.encoded.detach(), laws.data[:, None] + contrast.detach())
    close(mean(laws.data, mean(laws.encoder, laws.joint - contrast - t)), laws.elbo(), 1e-9)
    (gradient,) = torch.autograd.grad(with_kl, r)
    close(gradient, torch.zeros_like(gradient))


def test_a_learned_elbo_is_off_by_the_mean_error_of_t(laws: Laws) -> None:
    r = torch.randn(laws.logits.shape, dtype=torch.float64).log_softmax(-1)
    exact = laws.encoder - r
    learned = exact + torch.randn_like(exact)
    off = mean(laws.data, mean(laws.encoder, laws.joint - r - learned)) - laws.elbo()
    close(off, mean(laws.data, mean(laws.encoder, exact - learned)))


def test_ratios_do_not_change_under_a_trunk() -> None:
    trunk = torch.distributions.transforms.ComposeTransform(
        [torch.distributions.SigmoidTransform(), torch.distributions.AffineTransform(-1.0, 3.0)]
    )
    e = torch.randn(500, dtype=torch.float64)
    base_q, base_r = torch.distributions.Normal(0.3, 0.8), torch.distributions.Normal(0.0, 1.0)
    q, r = (torch.distributions.TransformedDistribution(law, [trunk]) for law in (base_q, base_r))
    z = trunk(e)
    close(q.log_prob(z) - r.log_prob(z), base_q.log_prob(e) - base_r.log_prob(e), 1e-6)
    # log q(z) = T(e) + log r(e) - log|det dG/de|.
    t = base_q.log_prob(e) - base_r.log_prob(e)
    close(q.log_prob(z), t + base_r.log_prob(e) - trunk.log_abs_det_jacobian(e, z), 1e-6)


# -- relatives ---------------------------------------------------------------------------------------------


def test_an_adversary_that_does_not_see_the_data(laws: Laws) -> None:
    q = laws.aggregate.detach()
    close(best(q, laws.prior), q - laws.prior, 1e-9)

    def objective(t: Tensor) -> Tensor:
        """(AVB 6.3) as printed: a T of z alone, over pairs."""
        of_q = laws.encoded.detach().exp() * logsigmoid(t)
        return (of_q + (laws.data[:, None] + laws.prior).exp() * logsigmoid(-t)).sum()

    t = (q - laws.prior).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(t), t)
    close(gradient, torch.zeros_like(gradient))


def test_kl_is_the_f_divergence_of_t_log_t(laws: Laws) -> None:
    q, p = laws.encoder[0].detach(), laws.prior
    ratio = (q - p).exp()
    close(mean(p, ratio * ratio.log()), kl(q, p))
    objective = avbvi.KullbackLeibler()

    def bound(t: Tensor) -> Tensor:
        return mean(q, objective.activated(t)) - mean(p, objective.conjugate(t))

    close(bound(1.0 + q - p), kl(q, p))
    for _ in range(20):
        assert bound(1.0 + q - p + 0.3 * torch.randn_like(q)) < kl(q, p)


def test_the_game_of_kl_has_the_evidence_as_its_value(laws: Laws) -> None:
    posterior = laws.joint - laws.evidence[:, None]

    def value(t: Tensor) -> Tensor:
        """(AVB 6.9) at q the posterior."""
        of_prior = mean(laws.data, mean(laws.prior.expand_as(t), (t - 1.0).exp()))
        return of_prior + mean(laws.data, mean(posterior, laws.likelihood - t))

    best_t = 1.0 + posterior - laws.prior
    close(value(best_t), mean(laws.data, laws.evidence))
    for _ in range(20):
        assert value(best_t + 0.3 * torch.randn_like(best_t)) > value(best_t)


def test_the_bound_of_kl_holds_for_any_function(laws: Laws) -> None:
    q, p = laws.encoder[0].detach(), laws.prior
    for _ in range(50):
        t = torch.randn_like(q)
        without_logarithm = mean(q, t) - mean(p, t.exp()) + 1.0
        donsker_varadhan = mean(q, t) - mean(p, t.exp()).log()
        assert without_logarithm <= donsker_varadhan <= kl(q, p)
    close(mean(q, q - p) - mean(p, (q - p).exp()) + 1.0, kl(q, p))


def test_the_elbo_is_a_divergence_of_joint_laws(laws: Laws) -> None:
    by_conditionals = mean(laws.data, laws.evidence - kl(laws.encoder, laws.joint - laws.evidence[:, None]))
    joint = kl(laws.encoded.flatten(), laws.joint.flatten())
    entropy = -mean(laws.data, laws.data)
    close(laws.elbo(), by_conditionals)
    close(laws.elbo(), -joint - entropy)


def test_the_halves_of_as_vae(laws: Laws) -> None:
    q, p = laws.encoded.detach(), laws.joint
    f1 = best(q, laws.evidence[:, None] + laws.prior)
    close(f1, q - laws.evidence[:, None] - laws.prior, 1e-9)
    value = (q.exp() * (laws.likelihood - f1)).sum()
    close(value, mean(laws.data, laws.evidence) - kl(q.flatten(), p.flatten()), 1e-9)
    f2 = best(p, laws.data[:, None] + laws.aggregate.detach())
    close(f2, p - laws.data[:, None] - laws.aggregate.detach(), 1e-9)
    value = (p.exp() * (laws.encoder.detach() - f2)).sum()
    close(value, mean(laws.prior, laws.aggregate.detach()) - kl(p.flatten(), q.flatten()), 1e-9)


def test_the_contrasts_of_as_vae_leave_little_to_learn(laws: Laws) -> None:
    encoder = laws.encoder.detach()
    q, p = laws.encoded.detach(), laws.joint
    t1 = best(q, laws.evidence[:, None] + encoder)
    close(t1, (laws.data - laws.evidence)[:, None].expand_as(t1), 1e-9)
    close(encoder - laws.prior + t1, q - laws.evidence[:, None] - laws.prior, 1e-9)
    # In f2 log p(z) stands for log q(z): what is left out does not depend on x.
    t2 = best(p, q)
    left_out = (encoder - laws.prior + t2) - (p - laws.data[:, None] - laws.aggregate.detach())
    close(left_out, left_out[:1].expand_as(left_out), 1e-9)


def test_an_aae_is_the_elbo_plus_mutual_information(laws: Laws) -> None:
    aae = mean(laws.data, mean(laws.encoder, laws.likelihood)) - kl(laws.aggregate, laws.prior)
    information = kl(laws.encoded.flatten(), (laws.data[:, None] + laws.aggregate).flatten())
    close(aae, laws.elbo() + information)


#: f and its g(T) and f*(g(T)) as the page's table has them.
TABLE: list[tuple[avbvi.FDivergence, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
    (avbvi.Logistic(), lambda t: torch.sigmoid(t).log(), lambda t: -torch.sigmoid(-t).log()),
    (
        avbvi.JensenShannon(),
        lambda t: 0.5 * (2.0 * torch.sigmoid(t)).log(),
        lambda t: -0.5 * (2.0 * torch.sigmoid(-t)).log(),
    ),
    (avbvi.KullbackLeibler(), lambda t: t, lambda t: (t - 1.0).exp()),
    (avbvi.ReverseKullbackLeibler(), lambda t: -(-t).exp(), lambda t: t - 1.0),
    (avbvi.SquaredHellinger(), lambda t: 1.0 - (-t / 2.0).exp(), lambda t: (t / 2.0).exp() - 1.0),
    (
        avbvi.TriangularDiscrimination(),
        lambda t: 1.0 - 4.0 * torch.sigmoid(-t) ** 2,
        lambda t: 4.0 * torch.sigmoid(t) ** 2 - 1.0,
    ),
    (avbvi.PearsonChiSquared(), lambda t: 2.0 * (t.exp() - 1.0), lambda t: (2.0 * t).exp() - 1.0),
    (avbvi.NeymanChiSquared(), lambda t: 1.0 - (-2.0 * t).exp(), lambda t: 2.0 - 2.0 * (-t).exp()),
    (avbvi.AlphaDivergence(0.3), lambda t: ((-0.7 * t).exp() - 1.0) / -0.7, lambda t: ((0.3 * t).exp() - 1.0) / 0.3),
]


@pytest.mark.parametrize(("objective", "g", "conjugate"), TABLE, ids=[type(row[0]).__name__ for row in TABLE])
def test_the_table_of_objectives(
    objective: avbvi.FDivergence, g: Callable[[Tensor], Tensor], conjugate: Callable[[Tensor], Tensor]
) -> None:
    t = torch.linspace(-3.0, 3.0, 13, dtype=torch.float64)
    close(objective.activated(t), g(t))
    close(objective.conjugate(t), conjugate(t))
    page = (ROOT / "docs" / "theory" / "relatives.md").read_text("utf-8")
    assert f"| [`{type(objective).__name__}`][avbvi." in page


# -- judges ---------------------------------------------------------------------------------------------------


def test_a_diagonal_contrast_leaves_the_correlations() -> None:
    correlation = torch.tensor([[1.0, 0.6, 0.2], [0.6, 1.0, -0.3], [0.2, -0.3, 1.0]], dtype=torch.float64)
    full = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), correlation)
    diagonal = torch.distributions.MultivariateNormal(
        torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    )
    close(torch.distributions.kl_divergence(full, diagonal), -0.5 * correlation.logdet())


def test_moving_draws_tell_jeffreys_divergence(laws: Laws) -> None:
    q, p = laws.encoder[0].detach(), laws.joint[0] - laws.evidence[0]
    # Metropolis steps between neighbours leave p invariant.
    size = len(q)
    kernel = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in ((i - 1) % size, (i + 1) % size):
            kernel[i, j] = 0.5 * min(1.0, float((p[j] - p[i]).exp()))
        kernel[i, i] = 1.0 - kernel[i].sum()
    close(p.exp() @ kernel, p.exp())
    moved = (q.exp() @ kernel).log()
    assert kl(moved, p) < kl(q, p)
    log_w = laws.joint[0] - q
    difference = mean(moved, log_w) - mean(q, log_w)
    close(difference, kl(q, p) + kl(moved, q) - kl(moved, p))
    # Once the chains have arrived.
    close(mean(p, log_w) - mean(q, log_w), kl(q, p) + kl(p, q))


def test_weights_tell_evidence_and_divergence(laws: Laws) -> None:
    q = laws.encoder[0].detach()
    log_w = laws.joint[0] - q
    close(mean(q, log_w.exp()).log(), laws.evidence[0])
    close(mean(q, log_w.exp()).log() - mean(q, log_w), kl(q, laws.joint[0] - laws.evidence[0]))


def test_pinsker(laws: Laws) -> None:
    q, p = laws.encoder[0].detach(), laws.prior
    variation = 0.5 * (q.exp() - p.exp()).abs().sum()
    assert 2.0 * variation**2 <= kl(q, p)
    # The best classifier says q where q is denser.
    accuracy = 0.5 * torch.maximum(q.exp(), p.exp()).sum()
    close(accuracy, 0.5 + 0.5 * variation)


def test_steins_identity_of_normals() -> None:
    nodes, weights = gauss_hermite()
    e = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    w = torch.outer(weights, weights).reshape(-1)
    c = torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=torch.float64)
    s = torch.tensor([[0.7, -0.2], [-0.2, 0.9]], dtype=torch.float64)
    z = e @ torch.linalg.cholesky(c).mT
    score = -torch.linalg.solve(s, z.mT).mT
    close(-(w[:, None] * score).mT @ z, torch.linalg.solve(s, c), 1e-9)
