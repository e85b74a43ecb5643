"""Training of latent-variable models, the same for every encoder: optimiser, schedule, steps, batches.

A run is reproducible from its seed, can be cut into pieces by the clock and saved between them, and leaves the
caller's random state and Pyro's parameter store as they were.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from avbvi.arguments import function, instance, integer, number, positive_number
from avbvi.early_stopping import EarlyStopping, evaluation_mode
from avbvi.errors import NonFiniteError
from avbvi.gradients import GradientBound
from avbvi.rng import rng_state, rng_untouched, set_rng_state
from benchmarks.latent_batches import Batches, Loader

MOST_SKIPPED_IN_A_ROW = 50

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """What all methods of a board share.

    Args:
        steps: number of optimiser steps.
        lr: learning rate of Adam at the start; half a cosine brings it to zero. Groups of parameters may have their
            own.
        betas: Adam's.
        warm_up: share of the steps in which the weight of log p(z) - log q(z | x) rises from 0 to 1.
        average: decay of the moving average of the parameters which the finished run takes; None takes the last.

    Raises:
        ValueError: a number out of its range.
    """

    steps: int
    lr: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    warm_up: float = 0.0
    average: float | None = None

    def __post_init__(self) -> None:
        integer("steps", self.steps, 1)
        positive_number("lr", self.lr)
        if not 0.0 <= number("warm_up", self.warm_up) < 1.0:
            raise ValueError(f"warm_up must be in [0, 1), found {self.warm_up}")
        if self.average is not None and not 0.0 <= number("average", self.average) < 1.0:
            raise ValueError(f"average must be in [0, 1) or None, found {self.average}")

    def factor(self, step: int) -> float:
        """Learning rate at a step, relative to its start."""
        return 0.5 * (1.0 + math.cos(math.pi * step / self.steps))

    def weight(self, step: int) -> float:
        """Weight of the latents' terms at a step."""
        return min(1.0, step / (self.warm_up * self.steps)) if self.warm_up > 0.0 else 1.0


@dataclass(frozen=True)
class Validation:
    """How a run looks at data that it does not learn from.

    Args:
        stopping: keeps the best parameters, which the finished run takes, and says when to stop; not used before.
        figure: the figure of model and guide as they are, smaller is better; its random numbers are
            :meth:`avbvi.early_stopping.EarlyStopping.evaluating`'s.
        every: steps between two looks; the last step is looked at anyway.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: every is not positive.
    """

    stopping: EarlyStopping
    figure: Callable[[], float | Tensor]
    every: int = 100

    def __post_init__(self) -> None:
        instance("stopping", self.stopping, EarlyStopping, "an EarlyStopping")
        function("figure", self.figure)
        integer("every", self.every, 1)


def train(
    elbo: ELBO,
    model: Any,
    guide: Any,
    loader: Loader,
    parameters: Parameters,
    recipe: Recipe,
    *,
    seed: int,
    modules: Sequence[nn.Module] = (),
    validation: Validation | None = None,
) -> Training:
    """Train a model and its guide from beginning to end; see :class:`Training`."""
    training = Training(
        elbo, model, guide, loader, parameters, recipe, seed=seed, modules=modules, validation=validation
    )
    training.run()
    return training


class Training:
    """One run of Adam on the loss per datum of each minibatch.

    Args:
        elbo: a Pyro ELBO with ``differentiable_loss``. One that keeps adversaries has a ``state_dict``, which is part
            of this run's; an ``avbvi.AdversarialELBO`` needs the recipe's steps as its own, its own warm-up instead of
            the recipe's, and its guide, set up, among the modules.
        model, guide: Pyro callables of a minibatch.
        loader: gives minibatches (tensors with one row for each datum) epoch after epoch.
        parameters: those to be trained, or groups of them, as ``torch.optim`` takes them.
        recipe: what all methods share.
        seed: of all random numbers but the initial parameters, which the caller drew, and what the loader draws from
            a generator of its own.
        modules: those that are in ``train()`` mode while the run goes on and in ``eval()`` mode afterwards, and whose
            buffers belong to its state: what has dropout, running moments, an adversary.
        validation: looks at other data on the way. The averages of the parameters are looked at where there are any.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: the validation's EarlyStopping was used before, or does not keep all parameters.
    """

    def __init__(
        self,
        elbo: ELBO,
        model: Any,
        guide: Any,
        loader: Loader,
        parameters: Parameters,
        recipe: Recipe,
        *,
        seed: int,
        modules: Sequence[nn.Module] = (),
        validation: Validation | None = None,
    ) -> None:
        self.elbo, self.model, self.guide, self.recipe = elbo, model, guide, recipe
        self.optimizer = torch.optim.Adam(parameters, lr=recipe.lr, betas=recipe.betas, fused=True)
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._averages = None if recipe.average is None else [p.detach().clone() for p in self._parameters]
        self.modules, self.validation = tuple(modules), validation
        if validation is not None:
            self._check_validation(validation.stopping)
        self._bound = GradientBound()
        self._batches = Batches(loader)
        self._skipped_in_a_row = 0
        #: Steps done, those whose gradient was not finite among them, and seconds spent.
        self.step_count = 0
        self.skipped = 0
        self.seconds = 0.0
        #: Mean loss per datum of each hundredth of the run.
        self.losses: list[float] = []
        self._store: dict[str, Any] | None = None
        self._resumed = False
        self._sum: Tensor | float = 0.0
        self._summed = 0
        with rng_untouched():
            pyro.set_rng_seed(integer("seed", seed, 0))
            self._rng = rng_state()

    def _check_validation(self, stopping: EarlyStopping) -> None:
        if stopping.count:
            raise ValueError(
                f"validation.stopping must be unused, found one of {stopping.count} figures; make a new one"
            )
        kept = {id(p) for module in stopping.modules for p in module.parameters()}
        lost = sum(id(p) not in kept for p in self._parameters)
        if lost:
            raise ValueError(
                f"validation.stopping must keep all that is trained, found {lost} parameters besides; add their modules"
            )

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the validation has ended the run."""
        return self._at_last_step or (self.validation is not None and self.validation.stopping.stopped)

    @property
    def _at_last_step(self) -> bool:
        return self.step_count >= self.recipe.steps

    def run(self, seconds: float = math.inf) -> bool:
        """Go on for this long or to the end; returns whether the run is finished.

        Raises:
            NonFiniteError: loss or gradients were not finite in too many steps in a row.
        """
        started = time.monotonic()
        with self._own_state(), self._training_mode():
            while not self.finished and time.monotonic() - started < seconds:
                self._step()
        self.seconds += time.monotonic() - started
        return self.finished

    @contextmanager
    def _own_state(self) -> Iterator[None]:
        with rng_untouched(), pyro.get_param_store().scope(self._store) as self._store:
            set_rng_state(self._rng)
            try:
                yield
            finally:
                self._rng = rng_state()

    @contextmanager
    def _training_mode(self) -> Iterator[None]:
        for module in self.modules:
            module.train()
        try:
            yield
        finally:
            for module in self.modules:
                module.eval()

    def _step(self) -> None:
        batch = self._batches.next()
        if self._resumed:
            self._meet(batch)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self.recipe.factor(self.step_count)
        # Pyro's checks take a sixth of a step; what is wrong with a model shows in its first.
        with LatentWeight(self.recipe.weight(self.step_count)), pyro.validation_enabled(self.step_count == 0):
            loss = self.elbo.differentiable_loss(self.model, self.guide, batch) / len(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self._bound.apply(gradients):
            self._skipped_in_a_row = 0
            self.optimizer.step()
        else:
            self._skip()
        self.step_count += 1
        self._average()
        self._validate()
        self._note(loss.detach())

    def _meet(self, batch: Tensor) -> None:
        """Have the parameters in Pyro's store, as steps before would: a loss may look for them there."""
        with rng_untouched(), evaluation_mode(self.modules):
            self.elbo.loss(self.model, self.guide, batch)
        self._resumed = False

    def _validate(self) -> None:
        if self.validation is None or (self.step_count % self.validation.every and not self._at_last_step):
            return
        stopping = self.validation.stopping
        with self._averages_in_force():
            stopping.validate(self.validation.figure)
        if self.finished:
            stopping.restore()

    def _skip(self) -> None:
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"gradients were not finite in {self._skipped_in_a_row} steps in a row, "
                f"up to step {self.step_count + 1}"
            )

    @torch.no_grad()
    def _average(self) -> None:
        if self._averages is None or self.recipe.average is None:
            return
        decay = min(self.recipe.average, (1.0 + self.step_count) / (10.0 + self.step_count))
        torch._foreach_lerp_(self._averages, [p.detach() for p in self._parameters], 1.0 - decay)
        if self._at_last_step:
            torch._foreach_copy_(self._parameters, self._averages)

    @contextmanager
    def _averages_in_force(self) -> Iterator[None]:
        if self._averages is None or self._at_last_step:  # which has taken them for good
            yield
            return
        own = [p.detach().clone() for p in self._parameters]
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._averages)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._parameters, own)

    def _note(self, loss: Tensor) -> None:
        # A sum that stays on the device until it is read.
        self._sum = self._sum + loss.double()
        self._summed += 1
        if self._summed >= self.recipe.steps / 100 or self.finished:
            self.losses.append(float(self._sum) / self._summed)
            self._sum, self._summed = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as plain data and tensors."""
        return {
            "parameters": [p.detach().clone() for p in self._parameters],
            "averages": None if self._averages is None else [p.clone() for p in self._averages],
            "met": [p.grad is not None for p in self._parameters],
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "bound": [self._bound.mean, self._bound.count],
            "rng": self._rng,
            "batches": self._batches.state_dict(),
            "counts": [self.step_count, self.skipped, self._skipped_in_a_row, self._summed],
            "seconds": self.seconds,
            "losses": list(self.losses),
            "sum": float(self._sum),
            "modules": [dict(copy.deepcopy(module.state_dict())) for module in self.modules],
            "elbo": copy.deepcopy(self.elbo.state_dict()) if hasattr(self.elbo, "state_dict") else None,
            "validation": None if self.validation is None else self.validation.stopping.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; the run goes on as if it had not been interrupted."""
        state = copy.deepcopy(state)  # optimisers keep, and later overwrite, what they are given
        for module, saved in zip(self.modules, state.get("modules", []), strict=True):
            module.load_state_dict(saved)
        if hasattr(self.elbo, "load_state_dict"):
            self.elbo.load_state_dict(state["elbo"])
        if self.validation is not None:
            self.validation.stopping.load_state_dict(state["validation"])
        for p, saved in zip(self._parameters, state["parameters"], strict=True):
            p.copy_(saved)
        for p, met in zip(self._parameters, state.get("met", []), strict=False):
            # What the last step moved is told by its having a gradient, of which the next step makes no other use.
            p.grad = torch.zeros_like(p) if met else None
        if self._averages is not None:
            for mean, saved in zip(self._averages, state["averages"], strict=True):
                mean.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self._bound.mean, self._bound.count = state["bound"]
        self.step_count, self.skipped, self._skipped_in_a_row, self._summed = state["counts"]
        self.seconds, self.losses, self._sum = state["seconds"], list(state["losses"]), state["sum"]
        self._rng = state["rng"]
        self._resumed = self.step_count > 0 and hasattr(self.elbo, "state_dict")
        with rng_untouched():
            self._batches.load_state_dict(state["batches"])


class LatentWeight(Messenger):
    """Multiplies the log-densities of all latent sites, in model and guide alike, by a weight.

    Args:
        weight: 0 leaves the reconstruction alone, 1 changes nothing.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if self.weight != 1.0 and not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.weight
