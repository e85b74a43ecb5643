"""JointAdversarialLoss: a Pyro ELBO whose adversaries compare joint laws of data and latents."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.optim import PyroOptim
from torch import Tensor, nn

from ..adversaries import Adversary
from ..arguments import function, instance, integer, positive_integer, positive_number
from ..errors import CheckpointError, NonFiniteError
from ..gradients import StepGuard, explain_non_finite, with_gradient
from ..model_state import modules_of
from ..optimisers import scheduled_adam
from ..rng import forked
from ..schedules import Schedule
from ..targets import Model
from .checks import check_data, check_guide, data_of
from .draws import JointDraws, LatentVariableModel
from .games import Game

WARM_UP_STEPS = 100
ADVERSARY_LR = 2e-3


class JointAdversarialLoss(ELBO):
    """Base class of losses for a latent-variable model p(z) p(x | z) and an encoder q(z | x), with adversaries.

    A training call (``loss_and_grads``, or ``differentiable_loss`` with gradients enabled) first moves the adversaries
    of the loss's games on fresh draws, then gives the outer loss, in which their parameters are constants. ``loss`` and
    anything under ``no_grad`` change nothing.

    The model has one plate over the data, in which all its latents and its one observed site lie; its first argument
    is the data. The guide is any Pyro guide of the same arguments. There is one draw for each datum of a minibatch. The
    loss is the sum over data, scaled N / B, as in Pyro. A model and a guide that were not in the last call are run some
    times, to refuse what they can't do for this loss before anything is trained; hand in the same objects each time.

    A subclass defines its games and :meth:`terms`.

    Args:
        games: the adversaries, each with the two samples that it tells apart.
        steps: number of training calls to come; learning rates then decay to zero.
        adversary_steps: steps of each adversary per outer step.
        pretrain_steps: those before the first outer step.
        schedule: its ``decay``, ``adversary_floor``, ``polish``, the share at the end of the run in which the modules
            rest and the adversaries learn on, and ``kl_warm_up``, the share of the run in which the weight of the
            adversaries in the outer loss rises from 0 to 1.

    Raises:
        ValueError: non-positive counts, or one adversary in two games.
        TypeError: a count is no integer, or ``schedule`` no :class:`~avbvi.Schedule`.

    Source: Pu et al. (2017), Adversarial symmetric variational autoencoder, NeurIPS, section 3; the relatives are set
    side by side in AVB (Mescheder, Nowozin and Geiger 2017), section 6.
    """

    def __init__(
        self,
        games: Sequence[Game],
        *,
        steps: int | None = None,
        adversary_steps: int = 2,
        pretrain_steps: int = 100,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.steps: int | None = None if steps is None else positive_integer("steps", steps)
        self.adversary_steps: int = positive_integer("adversary_steps", adversary_steps)
        self.pretrain_steps: int = integer("pretrain_steps", pretrain_steps, 0)
        if schedule is not None:
            instance("schedule", schedule, Schedule, "a Schedule")
        self.schedule: Schedule = schedule or Schedule()
        self.games: tuple[Game, ...] = tuple(games)
        if len({id(game.adversary) for game in self.games}) < len(self.games):
            raise ValueError("adversaries must be different objects, found one of them twice")
        #: Training calls done, and steps of adversaries or outer ones that were skipped as they were not finite.
        self.step_count: int = 0
        self.skipped_steps: int = 0
        self._guard = StepGuard()
        self._reading: LatentVariableModel | None = None
        self._waiting: list[dict[str, Any]] | None = None
        #: The guide of the last call, and the same without Pyro's handlers.
        self._met: Any = None
        self._guide: Any = None

    # -- what a subclass says -------------------------------------------------------------------------

    def terms(self, draws: JointDraws, weight: float) -> Tensor:
        """The outer loss of each datum (B,) from the ``draws``; ``weight`` multiplies what adversaries say."""
        raise NotImplementedError

    def reconstruction_terms(self, draws: JointDraws) -> Tensor:
        """The reconstruction loss of each datum (B,) from the ``draws``."""
        return -draws.log_likelihood

    # -- Pyro's ELBO interface --------------------------------------------------------------------------

    def _get_trace(self, model: Model, guide: Any, args: Any, kwargs: Any) -> Any:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def loss(self, model: Model, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The outer loss of ``model`` and ``guide``, in nats if it is made of log-ratios; trains nothing."""
        with torch.no_grad():
            self._ready(model, guide, args, kwargs)
            return float(self._outer(self._draws(model, guide, args, kwargs)))

    def differentiable_loss(self, model: Model, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The outer loss () of ``model`` and ``guide`` to be differentiated, for ``torch.optim``.

        It trains the adversaries, unless under ``no_grad``.

        Raises:
            NonFiniteError: the loss is NaN or infinite.
        """
        self._ready(model, guide, args, kwargs)
        if torch.is_grad_enabled():
            self._train_adversaries(model, guide, args, kwargs)
        value = self._outer(self._draws(model, guide, args, kwargs))
        if torch.is_grad_enabled():
            self.step_count += 1
            if not bool(torch.isfinite(value)):
                raise NonFiniteError(explain_non_finite(f"the loss is {float(value.detach())}"))
        return value

    def loss_and_grads(self, model: Model, guide: Any, *args: Any, **kwargs: Any) -> float:
        """One training call: the adversaries, then the outer loss with gradients; a non-finite one is skipped.

        The gradients are left in the parameters of ``model`` and ``guide``; returned is the loss, in nats for losses
        made of log-ratios.

        Raises:
            NonFiniteError: too many non-finite losses or gradients in a row.
        """
        self._ready(model, guide, args, kwargs)
        self._train_adversaries(model, guide, args, kwargs)
        value = self._outer(self._draws(model, guide, args, kwargs))
        value.backward()
        self.step_count += 1
        gradients = with_gradient(guide)
        loss = float(value.detach())
        if not self._guard.admits(loss, [p.grad for p in gradients if p.grad is not None], []):
            self.skipped_steps += 1
            for p in gradients:
                p.grad = None
        return loss

    def optimizer(self, lr: float = 1e-3, model_lr: float | None = None) -> PyroOptim:
        """Adam (betas 0.5, 0.999) for ``SVI``, its rate decaying over ``steps``.

        ``model_lr`` is the rate of the model's own parameters, those of a decoder; by default it is ``lr``.

        Raises:
            TypeError: a rate is no number.
            ValueError: a rate is not positive.
        """
        lr = positive_number("lr", lr)
        model_lr = lr if model_lr is None else positive_number("model_lr", model_lr)
        return scheduled_adam(self.lr_factor, lr, model_lr, lambda: nn.ModuleList(modules_of(self._guide).values()))

    def lr_factor(self) -> float:
        """Learning rate of the current training call relative to its start."""
        count = max(self.step_count - 1, 0)  # asked for after the call has been counted
        return 0.0 if self.steps is not None and count >= self.steps else _warm(count) * self._decay(count)

    # -- judging -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def reconstruction(self, model: Model, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Mean reconstruction loss per datum in nats, what early stopping watches on held-out data (AS-VAE, section 5).

        Of ``model`` and ``guide``, that is -log p(x | z) at latents of the data, -log q(z | x) at data of the model, or
        their sum, as the loss has them. Modules are taken in the mode that they are in.
        """
        self._ready(model, guide, args, kwargs)
        return float(self.reconstruction_terms(self._draws(model, guide, args, kwargs)).mean())

    def draws(self, model: Model, guide: Any, *args: Any, **kwargs: Any) -> JointDraws:
        """A minibatch's draws of both joint laws, of ``model`` and ``guide``, for questions to the loss's games."""
        self._ready(model, guide, args, kwargs)
        return self._draws(model, guide, args, kwargs)

    # -- a training call -----------------------------------------------------------------------------------

    def _ready(self, model: Model, guide: Any, args: Any, kwargs: Any) -> None:
        """Check the data; what a new model or guide can't do for this loss is refused before anything is trained."""
        function("model", model)
        function("guide", guide)
        x, reading = data_of(args), self._reading
        if reading is None or reading.model != model:
            reading = LatentVariableModel(model, args, kwargs)
        else:
            check_data(x, reading.width)
            if self._met == guide:
                return
        draws = JointDraws(reading, guide, args, kwargs)
        with forked(), poutine.block():
            with torch.enable_grad():  # which guides need that set themselves up in their first call
                self._look_at_guide(draws)
            with torch.no_grad():
                for game in self.games:
                    game.build(draws)
            with torch.enable_grad():
                self.terms(JointDraws(reading, guide, args, kwargs), 1.0)
        if self._waiting is not None:
            self._restore(self._waiting)
            self._waiting = None
        self._reading, self._met, self._guide = reading, guide, poutine.unwrap(guide)

    def _look_at_guide(self, draws: JointDraws) -> None:
        check_guide(draws)

    def _draws(self, model: Model, guide: Any, args: Any, kwargs: Any) -> JointDraws:
        assert self._reading is not None
        return JointDraws(self._reading, guide, args, kwargs)

    def _outer(self, draws: JointDraws) -> Tensor:
        done = 0.0 if self.steps is None else min(self.step_count / self.steps, 1.0)
        weight = self.schedule.kl_weight(done) if self.steps is not None else 1.0
        return self.terms(draws, weight).sum() * draws.scale

    def _train_adversaries(self, model: Model, guide: Any, args: Any, kwargs: Any) -> None:
        if self.steps is not None and self.step_count >= self.steps:
            return  # the run is over
        count = self.step_count
        factor = self._adversary_factor(count)
        with torch.no_grad(), poutine.block():
            for _ in range(0 if count else self.pretrain_steps):
                self._step_adversaries(self._draws(model, guide, args, kwargs), factor)
            for _ in range(self.adversary_steps):
                self._step_adversaries(self._draws(model, guide, args, kwargs), _warm(count) * factor)

    def _step_adversaries(self, draws: JointDraws, factor: float) -> None:
        for game in self.games:
            if not game.step(draws, factor):
                self.skipped_steps += 1

    def _decay(self, count: int) -> float:
        """Factor of the outer rate; 0 in the polish."""
        if self.steps is None:
            return 1.0
        done, polish = count / self.steps, self.schedule.polish
        return 0.0 if done >= 1.0 - polish else self.schedule.factor(done / (1.0 - polish))

    def _adversary_factor(self, count: int) -> float:
        # Adversaries keep on learning while the modules slow down, and come to rest in the polish.
        floor, polish = self.schedule.adversary_floor, self.schedule.polish
        left = 1.0 if self.steps is None else 1.0 - count / self.steps
        return floor * left / polish if left <= polish else max(floor, self._decay(count))

    # -- state ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of a run depends on: adversaries, their optimisers, counts."""
        games = self._waiting if self._waiting is not None else [game.state_dict() for game in self.games]
        return {
            "loss": type(self).__name__,
            "games": games,
            "guard": self._guard.state_dict(),
            "step_count": self.step_count,
            "skipped_steps": self.skipped_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the ``state`` that :meth:`state_dict` gave; before the first call it waits for that.

        Raises:
            CheckpointError: it is another loss's, or damaged.
        """
        games, guard, count, skipped = self._checked(state)
        if any(game.adam is None for game in self.games):
            self._waiting = copy.deepcopy(games)
        elif any(game["adam"] is None for game in games):
            raise CheckpointError("state is that of a loss before its first call; load it into a new loss")
        else:
            self._restore(games)
        self._guard, self.step_count, self.skipped_steps = guard, count, skipped

    def _checked(self, state: Any) -> tuple[list[dict[str, Any]], StepGuard, int, int]:
        """The parts of a state, as far as they can be checked before adversaries are built."""
        own = type(self).__name__
        name = state.get("loss") if isinstance(state, dict) else None
        if name != own:
            raise CheckpointError(
                f"state must be that of a {own}, found {type(state).__name__ if name is None else name}"
            )
        try:
            guard = StepGuard()
            guard.load_state_dict(state["guard"])
            count, skipped = (integer(key, state[key], 0) for key in ("step_count", "skipped_steps"))
            games = [{"adversary": dict(game["adversary"]), "adam": game["adam"]} for game in state["games"]]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"state is damaged: {error!r}") from error
        if len(games) != len(self.games):
            raise CheckpointError(f"state is damaged: it has {len(games)} adversaries, a {own} has {len(self.games)}")
        return games, guard, count, skipped

    def _restore(self, states: list[dict[str, Any]]) -> None:
        """Give the games, which are built, their states; none of them if one does not fit."""
        begun = [(game, state) for game, state in zip(self.games, states, strict=True) if state["adam"] is not None]
        for game, state in begun:
            game.check_state(state)
        for game, state in begun:
            game.load_state_dict(state)


class OneGameLoss(JointAdversarialLoss):
    """Base class of losses with a single adversary; a subclass defines :meth:`game` and ``terms``.

    Args:
        adversary: the network; ``None`` takes the subclass's default.
        adversary_lr: learning rate of its Adam (betas 0.5, 0.999), by default 0.002.
        steps: number of training calls to come (:class:`~avbvi.joint.JointAdversarialLoss`).
        adversary_steps: steps of the adversary per outer step.
        pretrain_steps: those before the first outer step.
        schedule: decay of the rates, polish and warm-up (:class:`~avbvi.joint.JointAdversarialLoss`).
    """

    def __init__(
        self,
        adversary: Adversary | None = None,
        *,
        steps: int | None = None,
        adversary_steps: int = 2,
        adversary_lr: float = ADVERSARY_LR,
        pretrain_steps: int = 100,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(
            [self.game(adversary, positive_number("adversary_lr", adversary_lr))],
            steps=steps,
            adversary_steps=adversary_steps,
            pretrain_steps=pretrain_steps,
            schedule=schedule,
        )

    def game(self, adversary: Adversary | None, lr: float) -> Game:
        """The game of an adversary, or of the default one, at a learning rate."""
        raise NotImplementedError


def _warm(count: int) -> float:
    return min(1.0, (1 + count) / WARM_UP_STEPS)
