"""Figures of samples against hand-made cases with known answers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

from avbvi.estimates import Estimate
from avbvi.sample_figures import bits_per_dimension, inception_score, rmse


def test_bits_of_fair_coins_and_of_uniform_levels() -> None:
    assert bits_per_dimension(784 * math.log(2.0), 784) == pytest.approx(1.0)
    # Uniform on 256 levels: 8 bits, as probabilities and as the density 1 on [0, 1].
    assert bits_per_dimension(3072 * math.log(256.0), 3072) == pytest.approx(8.0)
    assert bits_per_dimension(0.0, 3072, levels=256) == pytest.approx(8.0)
    estimate = bits_per_dimension(Estimate(20.0 * math.log(2.0), 5.0 * math.log(2.0)), 10, levels=4)
    assert estimate == (pytest.approx(4.0), pytest.approx(0.5))


def test_bits_of_a_density_are_those_of_its_narrow_bins() -> None:
    # A piecewise constant density on four bins: density and probabilities say the same.
    p = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    density = 4.0 * p
    nats, of_density = -(p * p.log()).sum(), -(p * density.log()).sum()
    assert bits_per_dimension(float(of_density), 1, levels=4) == pytest.approx(bits_per_dimension(float(nats), 1))


def test_rmse_is_that_of_known_noise() -> None:
    x = torch.zeros(2, 1, 2, 2)
    other = torch.tensor([[3.0, 3.0, 3.0, 3.0], [4.0, 4.0, 0.0, 0.0]]).reshape(2, 1, 2, 2) / 255.0
    found = rmse(x, other)
    assert found.value == pytest.approx(math.sqrt((9.0 + 8.0) / 2.0))
    assert found.stderr == pytest.approx(math.sqrt(0.5) / math.sqrt(2.0) / (2.0 * math.sqrt(8.5)))
    assert rmse(x, other, scale=1.0).value == pytest.approx(math.sqrt(8.5) / 255.0)
    assert rmse(x, x) == (0.0, 0.0)
    assert math.isnan(rmse(x[:1], other[:1]).stderr)


def test_standard_error_of_rmse_is_the_spread_over_data_sets() -> None:
    noise = 0.1 * torch.randn(400, 50, 8) * (1.0 + torch.rand(400, 50, 1))
    found = [rmse(torch.zeros(50, 8), each) for each in noise]
    values = torch.tensor([each.value for each in found])
    # The spread of 400 values is known to 3.5 %, the mean error to much less.
    assert float(values.std()) / (sum(each.stderr for each in found) / 400) == pytest.approx(1.0, abs=0.15)


def one_hot(labels: Tensor) -> Tensor:
    """A classifier of images whose first pixel is their class, of ten."""
    return nn.functional.one_hot(labels[:, 0].long(), 10).double()


def test_score_of_a_classifier_that_says_nothing_is_one() -> None:
    images = torch.randn(60, 5)
    assert inception_score(lambda x: torch.zeros(len(x), 7), images) == (pytest.approx(1.0, abs=1e-12), 0.0)
    # Sure, but always of the same class.
    sure = inception_score(one_hot, torch.ones(60, 1), logits=False)
    assert sure == (pytest.approx(1.0, abs=1e-12), 0.0)


@pytest.mark.parametrize("splits", [1, 4])
def test_score_of_sure_balanced_classes_is_their_number(splits: int) -> None:
    images = torch.arange(10.0).repeat(12).unsqueeze(-1)
    found = inception_score(one_hot, images, splits=splits, logits=False, batch_size=7)
    assert found.value == pytest.approx(10.0)
    assert found.stderr == pytest.approx(0.0, abs=1e-12) if splits > 1 else math.isnan(found.stderr)


def test_score_in_between_has_its_closed_form() -> None:
    # Two classes in balance, each told with probability t: log 2 - H(t).
    t = 0.8
    table = torch.tensor([[t, 1.0 - t], [1.0 - t, t]])
    images = torch.tensor([0.0, 1.0]).repeat(40).unsqueeze(-1)
    expected = math.exp(math.log(2.0) - stats.entropy([t, 1.0 - t]))
    by_probabilities = inception_score(lambda x: table[x[:, 0].long()], images, logits=False)
    by_logits = inception_score(lambda x: 3.0 + table.log()[x[:, 0].long()], images)
    assert by_probabilities.value == pytest.approx(expected, rel=1e-6)
    assert by_logits.value == pytest.approx(expected, rel=1e-6)


def test_splits_are_scored_by_themselves() -> None:
    # Classes 0 and 1 in the first half, 2 alone in the second: scores 2 and 1.
    labels = torch.cat([torch.arange(2.0).repeat(10), torch.full((20,), 2.0)]).unsqueeze(-1)
    found = inception_score(one_hot, labels, splits=2, logits=False)
    assert found == (pytest.approx(1.5), pytest.approx(0.5))
    # A remainder is left out.
    more = torch.cat([labels, torch.full((1, 1), 7.0)])
    assert inception_score(one_hot, more, splits=2, logits=False) == found


def test_bias_of_few_images_is_as_stated() -> None:
    # Every sample of m images of two classes that are equally likely: the mean log-score exactly.
    m = 8
    logs, expected = [], 0.0
    for labels in itertools.product([0.0, 1.0], repeat=m):
        score = inception_score(one_hot, torch.tensor(labels).unsqueeze(-1), splits=1, logits=False)
        logs.append(math.log(score.value))
    for k in range(m + 1):
        expected += special.comb(m, k) / 2.0**m * stats.entropy([k / m, 1.0 - k / m])
    mean = sum(logs) / len(logs)
    assert mean == pytest.approx(expected, abs=1e-9)
    assert mean - math.log(2.0) == pytest.approx(-1.0 / (2.0 * m), rel=0.1)
    # Ten classes, splits of 100: 4.5 %, to the error of 400 scores.
    scores = torch.tensor(
        [
            math.log(inception_score(one_hot, torch.randint(10, (100, 1)).float(), splits=1, logits=False).value)
            for _ in range(400)
        ]
    )
    error = float(scores.std()) / 20.0
    assert abs(float(scores.mean()) - math.log(10.0) + 0.045) < 4.0 * error + 0.001


def test_modules_are_scored_in_evaluation_mode_and_get_their_modes_back() -> None:
    classifier = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    classifier[2].eval()
    images = torch.randn(40, 3)
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    first = inception_score(classifier, images, splits=2)
    assert first == inception_score(classifier, images, splits=2, batch_size=7)
    assert [module.training for module in classifier] == [True, True, False, True]
    assert all(torch.equal(value, before[key]) for key, value in classifier.state_dict().items())


def test_errors() -> None:
    images, classifier = torch.randn(20, 3), nn.Linear(3, 4)
    with pytest.raises(TypeError, match="classifier must be callable, found str"):
        inception_score("inception", images)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"at least as many as splits=30, found \(20, 3\)"):
        inception_score(classifier, images, splits=30)
    for output in (torch.zeros(20), torch.zeros(19, 3), torch.zeros(20, 1), torch.zeros(20, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"classifier must return floating-point numbers of shape \(n, K\)"):
            inception_score(lambda x, output=output: output, images)
    with pytest.raises(TypeError, match="classifier's output must be a tensor"):
        inception_score(lambda x: x.tolist(), images)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="finite numbers"):
        inception_score(lambda x: x / 0.0, images)
    with pytest.raises(ValueError, match="pass logits=False"):
        inception_score(lambda x: x.softmax(-1), images)
    with pytest.raises(ValueError, match=r"rows of numbers in .* pass logits=True"):
        inception_score(classifier, images, logits=False)
    with pytest.raises(TypeError, match="logits must be True or False"):
        inception_score(classifier, images, logits="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the same shape \(B, \*shape\), found \(20, 3\) and \(20, 2\)"):
        rmse(images, images[:, :2])
    with pytest.raises(ValueError, match="must be finite"):
        rmse(images, images * math.nan)
    with pytest.raises(ValueError, match="scale must be positive"):
        rmse(images, images, scale=0.0)
    with pytest.raises(ValueError, match="dimensions must be at least 1"):
        bits_per_dimension(1.0, 0)
    with pytest.raises(ValueError, match="levels must be positive"):
        bits_per_dimension(1.0, 3, levels=0)
    with pytest.raises(TypeError, match="nats must be a number"):
        bits_per_dimension("1", 3)  # type: ignore[call-overload]
