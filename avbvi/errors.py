"""Exceptions of avbvi; each is also the built-in error that a caller would expect."""


class ModelError(ValueError):
    """The model can't be fitted by this guide; the message names the site and the remedy."""


class NonFiniteError(FloatingPointError):
    """A density, loss or gradient that stays NaN or infinite."""


class CheckpointError(ValueError):
    """A file that is damaged, foreign, or belongs to another fit."""
