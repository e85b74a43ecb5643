"""The classifier on held-out digits, and the score that it gives to pictures of known worth."""

from __future__ import annotations

import pytest
import torch

from avbvi.sample_figures import inception_score
from models.data import DynamicBinarisation, Images, digits
from models.digit_classifier import DigitClassifier, accuracy, train_classifier


@pytest.fixture(scope="module")
def classifier() -> DigitClassifier:
    return train_classifier(digits.load().train, steps=400)


def test_held_out_digits_are_told(classifier: DigitClassifier) -> None:
    assert not classifier.training
    assert accuracy(classifier, digits.load().test) >= 0.96
    # Chance, for pictures whose pixels are permuted.
    test = digits.load().test
    shuffled = Images(test.levels.flatten(1)[:, torch.randperm(64)].reshape(-1, 1, 8, 8), 16, test.labels)
    assert accuracy(classifier, shuffled) < 0.4


def test_its_score_tells_digits_from_worse(classifier: DigitClassifier) -> None:
    test = digits.load().test
    x, labels = test.intensities(), test.labels
    assert labels is not None
    of_data = inception_score(classifier, x, splits=1).value
    assert 9.0 < of_data <= 10.0
    # Half the classes, and pictures that are their mean.
    assert 4.5 < inception_score(classifier, x[labels < 5], splits=1).value < 5.3
    blurred = 0.5 * (x + x[torch.randperm(len(x))])
    assert inception_score(classifier, blurred, splits=1).value < of_data - 1.0


def test_binary_digits_need_a_classifier_of_their_own() -> None:
    split, rule = digits.load(), DynamicBinarisation()
    classifier = train_classifier(split.train, rule, steps=300)
    assert accuracy(classifier, split.test, rule) > 0.8


def test_a_seed_gives_one_classifier_and_leaves_the_generators() -> None:
    images, before = digits.load().train, torch.get_rng_state()
    first, again, other = (train_classifier(images, steps=5, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)
    assert torch.equal(torch.get_rng_state(), before)


def test_errors() -> None:
    images = digits.load().train
    with pytest.raises(ValueError, match="images must have labels for a classifier, found none"):
        train_classifier(Images(images.levels, 16))
    with pytest.raises(ValueError, match=r"labels 0, 1, \.\.\., found 0 to 0"):
        train_classifier(Images(images.levels, 16, torch.zeros(len(images), dtype=torch.long)))
    with pytest.raises(TypeError, match="binarisation must be a Binarisation"):
        train_classifier(images, "dynamic")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="images must be models"):
        train_classifier(images.intensities())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed must be an integer"):
        train_classifier(images, seed=None)  # type: ignore[arg-type]
