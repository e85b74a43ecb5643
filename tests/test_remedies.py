"""What is said of errors in a user's model: cause and remedy, by kind; what is not known is not guessed."""

import pytest
import torch

from avbvi.errors import ModelError
from avbvi.remedies import BROADCAST, innermost, remedy, shortened, spelled


def test_unknown_errors_get_no_remedy() -> None:
    assert remedy(ValueError("the sky fell"), (torch.ones(2),)) is None
    # NaN among the arguments is no cause of another error.
    assert remedy(ValueError("the sky fell"), (torch.tensor([float("nan")]),)) is None


def test_arguments_are_named_by_place_keyword_and_in_lists() -> None:
    error = RuntimeError("expected m1 and m2 to have the same dtype, but got: float != double")
    wide = torch.ones(2, dtype=torch.float64)
    said = remedy(error, (torch.ones(2), [torch.ones(2), wide]), {"scale": wide, "index": torch.arange(3)})
    assert said is not None
    assert "argument 2 of the model is torch.float64, scale is torch.float64:" in said
    assert "argument 1" not in said
    assert "index" not in said


def test_default_dtype_is_that_of_the_latents() -> None:
    torch.set_default_dtype(torch.float64)
    said = remedy(RuntimeError("expected scalar type Double but found Float"), (torch.ones(2, dtype=torch.float32),))
    assert said is not None
    assert said.startswith("The latents are torch.float64, argument 1 of the model is torch.float32")


@pytest.mark.parametrize(
    "text",
    [
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
        "Tensor on device meta is not on the expected device cpu!",
    ],
)
def test_another_device_is_named(text: str) -> None:
    said = remedy(RuntimeError(text), (torch.ones(2), torch.ones(2, device="meta")))
    assert said is not None
    assert "The latents are on cpu, argument 2 of the model on meta: name one device for all" in said


def test_nan_is_counted_where_a_value_was_invalid() -> None:
    x = torch.ones(3, 2)
    x[1] = float("nan")
    said = remedy(ValueError("to satisfy the constraint Real(), but found invalid values:\ntensor([1.0])"), (x,))
    assert said == "Argument 1 of the model has NaN in 2 of 6 places: remove or replace them"


def test_text_is_without_tables_and_tensors() -> None:
    error = ValueError("found invalid values:\ntensor([1.0,\n 2.0])\nTrace Shapes:\n Param Sites:")
    assert shortened(error) == "found invalid values"
    assert len(shortened(ValueError("x" * 1000))) == 300


def test_a_refusal_is_raised_as_it_was_made() -> None:
    first, second, cause = ModelError("plain"), ModelError("plain\nTrace Shapes:"), RuntimeError("cause")
    first.__cause__, second.__cause__ = cause, first
    assert innermost(second) is first
    assert innermost(first) is first


@spelled
def function(number: int, *, steps: int = 1) -> int:
    """A sum."""
    return number + steps


def test_a_misspelt_keyword_is_refused_with_the_right_one() -> None:
    assert function(1, steps=2) == function(number=1, steps=2) == 3
    with pytest.raises(TypeError, match=r"^function\(\) has no argument 'step'; did you mean 'steps'\?$"):
        function(1, step=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^function\(\) has no argument 'xyz'; it has number, steps$"):
        function(1, xyz=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        function()  # type: ignore[call-arg]
    assert function.__doc__ == "A sum."


def test_functions_of_any_keyword_are_left_alone() -> None:
    def open_ended(**kwargs: int) -> int:
        return len(kwargs)

    with pytest.raises(AssertionError):
        spelled(open_ended)


def test_a_plate_of_the_model_is_told_from_that_over_draws() -> None:
    said = [
        remedy(ValueError(f"Shape mismatch inside plate('{name}') at site y dim -1, 32 vs 3"))
        for name in ("rows", "_avbvi_particles")
    ]
    assert said[0] is not None
    assert said[0].startswith("Site 'y' has size 3 in dimension -1, which belongs to a plate: declare the dimensions")
    assert said[1] == f"{said[0]}. {BROADCAST}"
