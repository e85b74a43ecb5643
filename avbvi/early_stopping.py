"""Early stopping: keep the parameters whose figure on validation data was best.

Not to be confused with :mod:`avbvi.stopping`, which looks at the training objective alone and says when that has
converged. Here data that training does not see decide, parameters are kept, and an earlier state may be gone back to.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import found, function, instance, number, positive_integer, seed_number
from .errors import CheckpointError, NonFiniteError
from .module_states import check_state, copied_state
from .rng import seeded

KEYS = ("patience", "seed", "count", "best", "best_at", "kept")


class EarlyStopping:
    """Stop when a figure on validation data has not improved for a while; go back to where it was best.

    In a loop of ``SVI``, say, with a loss that has a validation figure::

        early = EarlyStopping([vae, encoder], patience=10)
        for step in range(steps):
            svi.step(x)
            if step % 100 == 99 and early.validate(lambda: loss.reconstruction(vae.model, encoder.guide, held_out)):
                break
        early.restore()

    Smaller figures are better; only one below all before it is an improvement. A figure that is NaN or infinite is
    none: a run that has broken down ends after ``patience`` of them, and :meth:`restore` goes back to before it did.
    The very first must be finite, as there would be nothing to go back to.

    Kept are the parameters and buffers of the modules, as of the best figure, in one copy on their device. The state
    of optimisers and of adversaries outside the modules is not: a run that is to go on after :meth:`restore` needs
    a new optimiser.

    Args:
        modules: those whose parameters are kept, a module or several.
        patience: figures in a row without improvement after which to stop.
        seed: of the random numbers in :meth:`validate`, the same each time.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: patience is not positive, seed out of range, or no module has a parameter or buffer.

    Example:
        >>> import torch, avbvi
        >>> module = torch.nn.Linear(1, 1)
        >>> early = avbvi.EarlyStopping(module, patience=2)
        >>> [early.update(figure) for figure in (3.0, 1.0, 2.0, 1.5)]  # validation losses
        [False, False, False, True]
        >>> early.best, early.best_at
        (1.0, 2)
        >>> early.restore()  # the module's parameters of the second figure

    Source: Pu et al. (2017), Adversarial symmetric variational autoencoder, section 5, by the reconstruction of x and
    z; the count of failures in a row as in Goodfellow et al. (2016), Deep Learning, algorithm 7.1.
    """

    def __init__(self, modules: nn.Module | Sequence[nn.Module], *, patience: int = 10, seed: int = 0) -> None:
        given = (modules,) if isinstance(modules, nn.Module) else modules
        if not isinstance(given, tuple | list):
            raise TypeError(f"modules must be a torch.nn.Module or a list of them, found {found(given)}")
        for i, module in enumerate(given):
            instance(f"modules[{i}]", module, nn.Module, "a torch.nn.Module")
        if not any(module.state_dict() for module in given):
            raise ValueError("modules must have parameters or buffers to be kept, found none; hand in those that learn")
        self.modules: tuple[nn.Module, ...] = tuple(given)
        self.patience: int = positive_integer("patience", patience)
        checked = seed_number(seed)
        if checked is None:
            raise TypeError("seed must be an integer, found None; figures are compared under the same random numbers")
        self.seed = checked
        #: Figures taken, and the best of them with its number, from 1; infinite and 0 before the first.
        self.count: int = 0
        self.best: float = math.inf
        self.best_at: int = 0
        self._kept: list[dict[str, Any]] = []

    @property
    def stopped(self) -> bool:
        """Whether ``patience`` figures in a row were no better than the best."""
        return self.count - self.best_at >= self.patience

    def update(self, figure: float | Tensor) -> bool:
        """Take a ``figure``, a scalar, of the parameters as they are; whether to stop. After that nothing changes.

        Raises:
            TypeError: the figure is no number.
            NonFiniteError: the first figure is NaN or infinite.
        """
        value = number("figure", figure.detach() if isinstance(figure, Tensor) else figure)
        if self.stopped:
            return True
        if not self.count and not math.isfinite(value):
            raise NonFiniteError(
                f"the first figure is {value}: there is nothing to go back to yet. Check the validation data for NaN, "
                "and the parameters that the run started from"
            )
        self.count += 1
        if math.isfinite(value) and value < self.best:
            self.best, self.best_at = value, self.count
            self._kept = [copied_state(module) for module in self.modules]
        return self.stopped

    def validate(self, figure: Callable[[], float | Tensor]) -> bool:
        """:meth:`update` with what ``figure()`` gives under :meth:`evaluating`, a scalar.

        Raises:
            TypeError: ``figure`` can't be called, or gives no number.
            NonFiniteError: as in :meth:`update`.
        """
        function("figure", figure)
        if self.stopped:
            return True
        with self.evaluating():
            value = figure()
        return self.update(value)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run the block as an evaluation that leaves no trace in the training.

        The modules are in ``eval()`` mode (no dropout), there are no gradients, and the random numbers begin at
        ``seed`` each time, so that figures differ by what was learned rather than by chance. Modes and the caller's
        generators are as before afterwards.
        """
        with evaluation_mode(self.modules), seeded(self.seed):
            yield

    def restore(self) -> None:
        """Give the modules the parameters and buffers of the best figure, in place.

        Raises:
            ValueError: there was no figure yet.
            CheckpointError: a module has other parameters than it had then.
        """
        if not self._kept:
            raise ValueError("restore() needs a figure to go back to, found none; call update() or validate() before")
        for i, (module, kept) in enumerate(zip(self.modules, self._kept, strict=True)):
            check_state(f"modules[{i}]", module, kept)
        for module, kept in zip(self.modules, self._kept, strict=True):
            module.load_state_dict(kept)

    def state_dict(self) -> dict[str, Any]:
        """The figures' record and the kept parameters, as plain data and tensors."""
        return {
            "patience": self.patience,
            "seed": self.seed,
            "count": self.count,
            "best": self.best,
            "best_at": self.best_at,
            "kept": copy.deepcopy(self._kept),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; the modules stay as they are until :meth:`restore`.

        A guide that makes its parameters in its first call must have been set up.

        Raises:
            CheckpointError: the state is damaged, or that of another patience or seed, or of other modules.
        """
        missing = [key for key in KEYS if not isinstance(state, Mapping) or key not in state]
        if missing:
            raise CheckpointError(f"state is not one of an EarlyStopping: it lacks {', '.join(map(repr, missing))}")
        for name, own in (("patience", self.patience), ("seed", self.seed)):
            if state[name] != own:
                raise CheckpointError(f"state is of a run with {name}={state[name]!r}, this one has {own}")
        kept, count, best, best_at = state["kept"], state["count"], state["best"], state["best_at"]
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (count, best_at))
        if not whole or not 0 <= best_at <= count or (best_at > 0) != (count > 0):
            raise CheckpointError(f"state is damaged: its best figure has number {best_at!r} of {count!r}")
        if not isinstance(best, float) or math.isfinite(best) != (count > 0):
            raise CheckpointError(f"state is damaged: its best figure of {count} is {best!r}")
        expected = len(self.modules) if count else 0
        if not isinstance(kept, list) or len(kept) != expected:
            what = f"{len(kept)}" if isinstance(kept, list) else found(kept)
            raise CheckpointError(f"state has the parameters of {what} modules, expected those of {expected}")
        for i, (module, values) in enumerate(zip(self.modules, kept, strict=False)):
            check_state(f"modules[{i}]", module, values)
        self.count, self.best, self.best_at = count, best, best_at
        self._kept = [
            {name: _like(value, own[name]) for name, value in values.items()}
            for values, own in zip(kept, (module.state_dict() for module in self.modules), strict=False)
        ]


@contextmanager
def evaluation_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Run the block with the modules in ``eval()`` mode and without gradients; each part's mode is restored."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _like(value: Any, own: Any) -> Any:
    if isinstance(value, Tensor) and isinstance(own, Tensor):
        return value.detach().to(own).clone()
    return copy.deepcopy(value)
