"""Constants: made once for each kind, never shared with those who get them, and not without end."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from avbvi.capture import constants
from avbvi.capture.constants import Constants


def test_the_same_numbers_are_made_once() -> None:
    known = Constants()
    for value, options in (
        *((v, {}) for v in (0.0, -0.0, 1.0, 1, True, [1.0, 2.0], [[1], [2]])),
        (1.0, {"dtype": torch.float64}),
    ):
        expected = torch.tensor(value, **options)  # type: ignore[call-overload]
        with known:
            first = torch.tensor(value, **options)  # type: ignore[call-overload]
            count = len(known._known)
            second = torch.tensor(value, **options)  # type: ignore[call-overload]
        for found in (first, second):
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
            assert torch.equal(torch.signbit(found), torch.signbit(expected))
        assert len(known._known) == count
        first.logical_not_()  # changes nobody else's
        with known:
            assert torch.equal(torch.tensor(value, **options), expected)  # type: ignore[call-overload]


def test_what_is_no_constant_is_made_as_ever() -> None:
    x: Any = torch.ones(2)
    with Constants() as known:
        assert torch.as_tensor(x) is x
        leaf = torch.tensor(2.0, requires_grad=True)
        assert leaf.is_leaf
        assert leaf.requires_grad
        assert torch.tensor([x.sum(), 1.0]).tolist() == [2.0, 1.0]
        assert known._known == {}


def test_ever_new_numbers_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "MOST", 4)
    with Constants() as known:
        for _ in range(2):
            assert [float(torch.tensor(float(i))) for i in range(10)] == list(range(10))
        assert len(known._known) == 4
