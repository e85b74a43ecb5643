"""scikit-learn's digits: what the loader gives is what the package holds, split the same way for ever."""

from __future__ import annotations

import builtins
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from models.data import Images, digits


def rows(images: Images) -> Counter[tuple[int, ...]]:
    assert images.labels is not None
    table = torch.cat([images.levels.flatten(1).long(), images.labels.unsqueeze(-1)], -1)
    return Counter(map(tuple, table.tolist()))


def test_the_parts_make_up_the_package() -> None:
    train, test = digits.load()
    assert (len(train), len(test)) == (1497, 300)
    assert train.image_shape == test.image_shape == (1, 8, 8)
    bunch = load_digits()
    table = np.concatenate([bunch.data, bunch.target[:, None]], 1).astype(int)
    assert rows(train) + rows(test) == Counter(map(tuple, table.tolist()))
    assert float(train.intensities().max()) == 1.0
    assert torch.equal(train.intensities() * 16.0, train.levels.flatten(1).float())


def test_the_split_never_changes() -> None:
    # Reported results rest on these: the first labels, and the sum of all levels of the test part.
    train, test = digits.load()
    assert test.labels is not None
    assert train.labels is not None
    assert test.labels[:10].tolist() == [8, 8, 2, 2, 2, 9, 8, 8, 3, 6]
    assert test.labels.bincount().tolist() == [27, 25, 36, 28, 38, 25, 30, 31, 25, 35]
    assert int(test.levels.long().sum()) == 93605
    torch.manual_seed(8)
    assert torch.equal(digits.load().train.levels, train.levels)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        digits.load()
