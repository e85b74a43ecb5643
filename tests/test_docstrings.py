"""Docstrings of public names state what a reader of the reference needs: parameters, shapes, units, errors, source."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from avbvi.arguments import integer, positive_number
from avbvi.estimates import Estimate

from .docstrings import SHAPES, complaints, described, parsed, raised
from .docstrings_lists import WITHOUT_SOURCE

DESCRIBED = described()


@pytest.mark.parametrize("name", sorted(DESCRIBED))
def test_docstring(name: str) -> None:
    needs_source = name not in WITHOUT_SOURCE and not name.startswith("avbvi.plots.")
    found = complaints(DESCRIBED[name], needs_source=needs_source)
    assert not found, f"{name}:\n  " + "\n  ".join(found)


def test_excused_from_a_source_is_only_what_is_there_and_has_none() -> None:
    assert WITHOUT_SOURCE.keys() - DESCRIBED.keys() == set()
    given = [name for name in WITHOUT_SOURCE if (doc := DESCRIBED[name].__doc__) and parsed(doc).has_source]
    assert given == []


# -- the rules themselves ------------------------------------------------------------------------------


def good(x: Tensor, k: int = 3) -> Estimate:
    """Entropy of draws.

    Args:
        x: draws (n, d).
        k: which neighbour.

    Returns:
        The entropy in nats.

    Raises:
        TypeError: k is no integer.
        ValueError: k is not positive.

    Source: Kozachenko and Leonenko (1987).
    """
    return Estimate(float(x.sum()) + integer("k", k, 1), 0.0)


class Good:
    """A map.

    Args:
        scale: of the map.

    Raises:
        TypeError: scale is no number.
        ValueError: scale is not positive.

    Source: folklore.
    """

    def __init__(self, scale: float) -> None:
        self.scale = positive_number("scale", scale)

    def forward(self, z: Tensor) -> Tensor:
        """Map z (*batch, d) to (*batch, d)."""
        return self.scale * z

    @property
    def entropy(self) -> float:
        """The entropy in nats."""
        return 0.0


class Child(Good):
    """Another map; its method has the docstring of the base class.

    Args:
        scale: of the map.

    Source: folklore.
    """

    def forward(self, z: Tensor) -> Tensor:
        return z


class Pair(NamedTuple):
    """Two tensors.

    Attributes:
        x: data (B, width).
        z: latents (B, dim).

    Source: folklore.
    """

    x: Tensor
    z: Tensor


@pytest.mark.parametrize("value", [good, Good, Child, Pair])
def test_good_docstrings_pass(value: Any) -> None:
    assert complaints(value) == []


def no_docstring(x: int) -> int:
    return x


def no_sentence(x: int) -> None:
    """Does something

    Args:
        x: a number.

    Source: folklore.
    """


def lacks_parameter(x: int, y: int) -> None:
    """Does something.

    Args:
        x: a number.

    Source: folklore.
    """


def extra_parameter(x: int) -> None:
    """Does something.

    Args:
        x: a number.
        y: not there.

    Source: folklore.
    """


def grouped_parameters(x: int, y: int) -> None:
    """Does something.

    Args:
        x, y: numbers.

    Source: folklore.
    """


def lacks_shape(x: Tensor) -> None:
    """Does something.

    Args:
        x: draws.

    Source: folklore.
    """


def lacks_shape_of_result() -> Tensor:
    """Some draws.

    Source: folklore.
    """
    return torch.zeros(1)


def lacks_unit() -> Estimate:
    """Some estimate.

    Source: folklore.
    """
    return Estimate(0.0, 0.0)


def lacks_error(k: int) -> None:
    """Does something.

    Args:
        k: a number.

    Raises:
        TypeError: k is no integer.

    Source: folklore.
    """
    integer("k", k, 1)


def lacks_own_error() -> None:
    """Does something.

    Source: folklore.
    """
    raise RuntimeError("no")


def lacks_source() -> None:
    """Does something."""


class LacksInMethod(Good):
    """A map.

    Args:
        scale: of the map.

    Source: folklore.
    """

    def other(self, z: Tensor) -> float:
        """Do something."""
        return 0.0


class LacksField(NamedTuple):
    """Two numbers.

    Attributes:
        x: the first.

    Source: folklore.
    """

    x: int
    y: int


class LacksDocstringOfMethod:
    """A class.

    Source: folklore.
    """

    def method(self) -> None:
        pass


@pytest.mark.parametrize(
    ("text", "is_shape"),
    [
        ("draws (n, d)", True),
        ("values (n,) of it", True),
        ("points (\\*batch, d)", True),
        ("a number ()", True),
        ("a scalar", True),
        ("quantiles (len(levels), d)", True),
        ("what f(x, y) gives", False),
        ("as found (Gretton, 2012)", False),
        ("it calls sample()", False),
        ("see (eq. 3, 4)", False),
    ],
)
def test_shapes_are_told_from_other_brackets(text: str, is_shape: bool) -> None:
    assert bool(SHAPES.search(text)) is is_shape


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (no_docstring, ["no docstring"]),
        (no_sentence, ["the first line is no sentence: 'Does something'"]),
        (lacks_parameter, ["Args: lacks y"]),
        (extra_parameter, ["Args: y is no parameter"]),
        (grouped_parameters, ["Args: ['x, y'] needs an entry for each", "Args: lacks x", "Args: lacks y"]),
        (lacks_shape, ["Args: x has no shape"]),
        (lacks_shape_of_result, ["the result has no shape"]),
        (lacks_unit, ["the result has no unit"]),
        (lacks_error, ["Raises: lacks ValueError"]),
        (lacks_own_error, ["Raises: lacks RuntimeError"]),
        (lacks_source, ["no Source:"]),
        (
            LacksInMethod,
            ["other: parameter z is neither in Args: nor named in the text", "other: the result has no unit"],
        ),
        (LacksField, ["Args: lacks y"]),
        (LacksDocstringOfMethod, ["method: no docstring, here or in a base class"]),
    ],
)
def test_what_lacks_is_said(value: Any, said: list[str]) -> None:
    assert complaints(value) == said


def test_errors_are_those_of_the_functions_own_statements() -> None:
    def outer(k: int) -> int:
        def inner() -> None:
            raise RuntimeError("not raised by the call itself")

        inner()
        if k > 3:
            raise KeyError(k)
        return integer("k", k)

    assert raised(outer) == {"KeyError", "TypeError", "ValueError"}


def test_most_public_names_are_described() -> None:
    assert len(DESCRIBED) > 150
    assert {"avbvi.fit", "avbvi.Posterior", "avbvi.knn_kl", "avbvi.hmc.run_hmc", "avbvi.joint.Game"} <= DESCRIBED.keys()
