"""Exceptions of avbvi; each is also the built-in error that a caller would expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["CheckpointError", "FitFailed", "ModelError", "NonFiniteError"]

if TYPE_CHECKING:
    from .posterior import Posterior


class ModelError(ValueError):
    """The model can't be fitted by this guide; the message names the site and the remedy.

    Example:
        >>> import avbvi
        >>> model = avbvi.LogDensity(lambda z: -z.square(), event_shape=(2,))  # forgets to sum
        >>> model()
        Traceback (most recent call last):
        ...
        avbvi.errors.ModelError: log_prob must return shape (1,) for values of shape (1, 2) ...
    """


class NonFiniteError(FloatingPointError):
    """A density, loss or gradient that stays NaN or infinite."""


class FitFailed(NonFiniteError):
    """A fit that kept breaking down although its learning rates were lowered each time.

    ``posterior`` is the last state in order, its verdict "failed"; ``None`` where there was none.
    """

    def __init__(self, message: str, posterior: Posterior | None = None) -> None:
        super().__init__(message)
        self.posterior = posterior


class CheckpointError(ValueError):
    """A file that is damaged, foreign, or belongs to another fit."""
