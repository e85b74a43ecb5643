"""What a training step changes, captured and restored as plain data: for checkpoints and for rollbacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from .elbo import LOSS, AdversarialELBO
from .errors import CheckpointError
from .guides import AVBGuide
from .masking import make_capturable
from .schedules import ScheduledAdam

#: The guide's counts that only grow: a rollback does not take them back.
COUNTS = ("step_count", "skipped_steps")


class TrainingState:
    """A guide, its loss and the outer optimiser, with the parameters that the steps have met so far.

    Args:
        guide: the guide.
        elbo: its loss.
        lr: learning rate of the outer Adam.
        model_lr: that of the model's own parameters; ``lr`` by default.
        buffers: buffers of the model by name (running moments, say), which its steps may change.
    """

    def __init__(
        self,
        guide: AVBGuide,
        elbo: AdversarialELBO,
        lr: float,
        model_lr: float | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.guide = guide
        self.elbo = elbo
        self.lr = lr
        self.model_lr: float = lr if model_lr is None else model_lr
        self.buffers: dict[str, Tensor] = dict(buffers or {})
        self.optimiser: ScheduledAdam | None = None
        self._parameters: dict[str, Tensor] = {}
        #: How often a state was restored; what was captured of the tensors before then is void.
        self.restorations: int = 0

    def optimise(self, named: dict[str, Tensor]) -> None:
        """One step of the outer optimiser; parameters not met before, by their names in Pyro's store, join it."""
        for name, parameter in named.items():
            self._add(name, parameter)
        assert self.optimiser is not None
        self.optimiser.step()
        self.optimiser.zero_grad()

    def optimise_masked(self, named: dict[str, Tensor], factor: Tensor, skipped: Tensor) -> None:
        """The same at ``factor`` () times the rates; nothing changes where ``skipped`` (), float32, is 1."""
        for name, parameter in named.items():
            self._add(name, parameter)
        assert self.optimiser is not None
        make_capturable(self.optimiser, factor)
        self.optimiser.masked_step(factor, skipped)
        self.optimiser.zero_grad()

    def _add(self, name: str, parameter: Tensor) -> None:
        if self.optimiser is None:
            groups = [{"params": [], "lr": rate} for rate in (self.lr, self.model_lr)]
            self.optimiser = ScheduledAdam(groups, factor=self.elbo.lr_factor)
        if name not in self._parameters:
            self._parameters[name] = parameter
            its = int(not name.startswith(f"{self.guide._pyro_name}."))
            self.optimiser.param_groups[its]["params"].append(parameter)

    def model_tensors(self) -> list[Tensor]:
        """The model's own parameters that the steps have met, and its buffers."""
        own = {id(p) for p in self.guide.parameters()}
        return [*(p for p in self._parameters.values() if id(p) not in own), *self.buffers.values()]

    @contextmanager
    def buffers_kept(self) -> Iterator[None]:
        """Run the block and restore the model's buffers: an evaluation in a resumed run must not move a mean."""
        before = _copied(self.buffers)
        try:
            yield
        finally:
            for name, value in before.items():
                self.buffers[name].copy_(value)

    # -- as plain data ------------------------------------------------------------------------------------

    def capture(self) -> dict[str, Any]:
        """A copy of all values, plain data but for tensors."""
        own = {id(p) for p in self.guide.parameters()}
        state: dict[str, Any] = self.elbo.state_dict()
        moments = {} if self.optimiser is None else self.optimiser.state
        return _copied(
            {
                "guide": dict(self.guide.state_dict()),
                "model": {
                    name: p.detach()
                    for name, p in pyro.get_param_store().named_parameters()
                    if name in self._parameters and id(p) not in own
                },
                "buffers": dict(self.buffers),
                "names": [self._portable(name) for name in self._parameters],
                "moments": {
                    self._portable(name): dict(moments[p]) for name, p in self._parameters.items() if p in moments
                },
                "loss": state[LOSS],
                "adversary": state.get(self.guide._pyro_name),
            }
        )

    @torch.no_grad()
    def restore(self, content: dict[str, Any], *, counts: bool = True) -> None:
        """Go back to what :meth:`capture` gave; without ``counts`` the guide's ``COUNTS`` stay."""
        self.restorations += 1
        content = _copied(content)  # optimisers keep, and later overwrite, what they are given
        kept = {name: int(getattr(self.guide, name)) for name in COUNTS}
        self.guide.load_state_dict(content["guide"])
        if not counts:
            for name, value in kept.items():
                getattr(self.guide, name).fill_(value)
        store = dict(pyro.get_param_store().named_parameters())
        for name, value in content["model"].items():
            store[name].copy_(value)
        for name, value in content["buffers"].items():
            self.buffers[name].copy_(value)
        for name, parameter in self._parameters.items():
            assert self.optimiser is not None
            moments = content["moments"].get(self._portable(name))
            if moments is None:
                self.optimiser.state.pop(parameter, None)
            else:
                self.optimiser.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
            parameter.grad = None
        self.elbo.forget(self.guide)
        self.elbo.load_state_dict({LOSS: content["loss"]})
        if content["adversary"] is not None:
            self.elbo.load_state_dict({self.guide._pyro_name: content["adversary"]})

    def resume(self, content: dict[str, Any], seen: dict[str, Tensor]) -> None:
        """Restore in a fresh process what :meth:`capture` gave in another.

        Args:
            content: what was captured.
            seen: parameters that an evaluation of the loss met, by their names in Pyro's store.

        Raises:
            CheckpointError: a parameter of ``content`` does not exist here, or the guide's parts differ.
        """
        prefix = f"{self.guide._pyro_name}."
        own = {f"{prefix}{_store_name(name)}": p for name, p in self.guide.named_parameters()}
        for portable in content["names"]:
            name = portable.replace("guide:", prefix, 1)
            parameter = own.get(name, seen.get(name))
            if parameter is None:
                raise CheckpointError(f"the checkpoint has a parameter {portable!r} that this model and guide lack")
            self._add(name, parameter)
        try:
            self.restore(content)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint does not fit this model and guide: {error}") from error

    def _portable(self, name: str) -> str:
        """A parameter's name in Pyro's store without the guide's own, which differs from process to process."""
        prefix = f"{self.guide._pyro_name}."
        return name.replace(prefix, "guide:", 1) if name.startswith(prefix) else name


def named_parameters(trace: poutine.Trace) -> dict[str, Tensor]:
    """The unconstrained parameters in a trace, by their names in Pyro's store."""
    return {name: site["value"].unconstrained() for name, site in trace.nodes.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(v) for v in value)
    return value


def _store_name(name: str) -> str:
    """A guide parameter's name as Pyro's store has it: module$$$rest."""
    module, _, rest = name.partition(".")
    return f"{module}$$${rest}" if rest else name
