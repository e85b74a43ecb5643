"""Optimisers: the outer one for Pyro's SVI, at one rate for the guide and another for the model, and an adversary's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.params.param_store import normalize_param_name
from torch import Tensor, nn

from .control import Factor
from .divided.division import average_
from .errors import CheckpointError
from .gradients import GradientBound, MaskedBound
from .masking import make_capturable, skipping
from .schedules import ScheduledAdam


def scheduled_adam(
    factor: Callable[[], float], lr: float, model_lr: float, guide: Callable[[], nn.Module | None]
) -> PyroOptim:
    """Adam (betas 0.5, 0.999) whose rates are multiplied by ``factor()`` at every step.

    Args:
        factor: gives the schedule's factor of the step.
        lr: rate of the guide's parameters.
        model_lr: rate of all others, the model's.
        guide: gives the guide that is being trained, when the first gradients are there.
    """
    adam = partial(ScheduledAdam, factor=factor)
    if lr == model_lr:
        return JointOptim(adam, {"lr": lr})

    def rate(name: str) -> dict[str, float]:
        unwrapped = guide()
        own = set() if unwrapped is None else {id(p) for p in unwrapped.parameters()}
        stored = {normalize_param_name(key): p for key, p in pyro.get_param_store().named_parameters()}
        return {"lr": lr if id(stored.get(name)) in own else model_lr}

    return JointOptim(adam, rate)


class JointOptim(PyroOptim):
    """Pyro's optimiser with one step for all parameters together, in place of one for each.

    A fused step of many small parameters costs little more than that of one. Parameters have their own options and
    state, as in any ``PyroOptim``, and ``get_state`` and ``set_state`` are the same.
    """

    def __init__(self, optim_constructor: Callable[..., torch.optim.Optimizer], optim_args: Any) -> None:
        super().__init__(optim_constructor, optim_args)
        self._joint: torch.optim.Optimizer | None = None
        #: Options of the joint optimiser's groups.
        self._options: list[dict[str, Any]] = []

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        given = list(params)
        met = [p for p in given if p not in self.optim_objs]
        for p in met:
            self._meet(p)
        if self._joint is None:
            return
        # What this call is not about must not move, whoever left a gradient there.
        others = set(self.optim_objs).difference(given) if len(given) < len(self.optim_objs) else ()
        left = [(p, p.grad) for p in others if p.grad is not None]
        for p, _ in left:
            p.grad = None
        self._joint.step(*args, **kwargs)
        for p, gradient in left:
            p.grad = gradient
        for p in given:
            if p not in self.optim_objs[p].state and p in self._joint.state:
                self.optim_objs[p].state[p] = self._joint.state[p]

    def _meet(self, p: Tensor) -> None:
        """Give a parameter options and state of its own, which the joint step uses."""
        own = self.optim_objs[p] = self._get_optim(p)
        state = self._state_waiting_to_be_consumed.pop(pyro.get_param_store().param_name(p), None)
        if state is not None:
            own.load_state_dict(state)
        options = self._get_optim_args(p)
        group = {"params": [p], **options}
        if self._joint is None:
            self._joint = self.pt_optim_constructor([group])
        elif options in self._options:
            self._joint.param_groups[self._options.index(options)]["params"].append(p)
        else:
            self._joint.add_param_group(group)
        if options not in self._options:
            self._options.append(options)
        if p in own.state:
            self._joint.state[p] = own.state[p]


class AdversaryAdam:
    """Adam (betas 0.5, 0.999) of an adversary, whose gradients no other optimiser ever finds in ``.grad``.

    Args:
        parameters: those that it moves.
        lr: its learning rate.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float) -> None:
        self.parameters: list[nn.Parameter] = list(parameters)
        self.lr: float = lr
        self.optimiser: torch.optim.Adam = torch.optim.Adam(self.parameters, lr=lr, betas=(0.5, 0.999), fused=True)
        self.bound: GradientBound | MaskedBound = GradientBound()

    def mask(self, like: Tensor) -> None:
        """Let :meth:`move_masked` take the place of :meth:`move`; the bound on gradients moves to ``like``'s device."""
        if isinstance(self.bound, GradientBound):
            self.bound = MaskedBound(self.bound, like)
            make_capturable(self.optimiser, like)

    def unmask(self) -> None:
        """Back to :meth:`move`; waits for the device."""
        if isinstance(self.bound, MaskedBound):
            self.bound = self.bound.unmasked()

    def move(self, loss: Tensor, factor: Factor) -> bool:
        """One step down the loss at ``factor`` times the rate; False, and no step, if its gradient is not finite.

        A gradient that is much longer than those before is shortened.
        """
        return self.move_along(torch.autograd.grad(loss, self.parameters, allow_unused=True), factor)

    def move_along(self, gradients: Sequence[Tensor | None], factor: Factor) -> bool:
        """:meth:`move`, with the gradients at hand; None for a parameter that the loss did not meet."""
        assert isinstance(self.bound, GradientBound)
        average_([g for g in gradients if g is not None])
        if not self.bound.apply([g for g in gradients if g is not None]):
            return False
        self._step(gradients, factor)
        return True

    def move_masked(self, gradients: Sequence[Tensor | None], factor: Factor, admitted: Tensor) -> Tensor:
        """:meth:`move_along` without reading anything back, for a captured step.

        Args:
            gradients: those of what the step goes down.
            factor: factor of the rate, a tensor () where it is to change from replay to replay.
            admitted: () boolean; no step is taken where it is false.

        Returns:
            () float32: 1 where no step was taken, else 0.
        """
        assert isinstance(self.bound, MaskedBound)
        skipped = self.bound.apply([g for g in gradients if g is not None], admitted)
        with skipping(self.optimiser, skipped):
            self._step(gradients, factor)
        return skipped

    def _step(self, gradients: Sequence[Tensor | None], factor: Factor) -> None:
        for group in self.optimiser.param_groups:
            # The kernel takes a tensor in float32 only.
            group["lr"] = (self.lr * factor).float() if isinstance(factor, Tensor) else self.lr * factor
        # .grad is lent to the optimiser for this one step: a user's optimiser over all parameters must
        # find nothing there.
        for p, g in zip(self.parameters, gradients, strict=True):
            p.grad = g
        self.optimiser.step()
        for p in self.parameters:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state and the usual length of a gradient."""
        state = self.optimiser.state_dict()
        # How the last step was carried out is not part of the state.
        groups = [{**group, "lr": float(group["lr"]), "capturable": False} for group in state["param_groups"]]
        return {"optimiser": {**state, "param_groups": groups}, "bound": self.bound.state_dict()}

    def check_state(self, state: Any) -> None:
        """Raise unless this is a state of these parameters: Adam itself would write beyond moments that are too short.

        Raises:
            CheckpointError: it is not.
        """
        try:
            (group,) = state["optimiser"]["param_groups"]
            count, moments = len(group["params"]), dict(state["optimiser"]["state"])
            GradientBound().load_state_dict(state["bound"])
            shapes = {i: {tuple(m[key].shape) for key in ("exp_avg", "exp_avg_sq")} for i, m in moments.items()}
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"state is damaged: it has no state of an adversary's Adam ({error!r})") from error
        own = [tuple(p.shape) for p in self.parameters]
        if count != len(own) or any(i not in range(count) or found != {own[i]} for i, found in shapes.items()):
            raise CheckpointError(
                "state does not fit: its optimiser has moments of other parameters than the adversary's"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            CheckpointError: it is damaged, or that of other parameters.
        """
        self.check_state(state)
        # Adam would keep, and later overwrite, the caller's tensors.
        self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        self.bound.load_state_dict(state["bound"])
        if isinstance(self.bound, MaskedBound):
            make_capturable(self.optimiser, self.bound.mean)
