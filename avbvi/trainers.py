"""The adversaries' trainers of all guides that one loss has met, and their state by the guides' names."""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

from pyro import poutine
from torch import nn

from .adversarial import AdversaryTrainer
from .amortised.training import AmortisedTrainer
from .guides import AVBGuide


def avb_guides(guide: Any) -> list[AVBGuide]:
    """The AVBGuides in a guide.

    Raises:
        TypeError: there are none.
    """
    unwrapped = poutine.unwrap(guide)
    if isinstance(unwrapped, AVBGuide):
        return [unwrapped]  # as most guides are, without a walk through all of its modules at every step
    guides = [m for m in unwrapped.modules() if isinstance(m, AVBGuide)] if isinstance(unwrapped, nn.Module) else []
    if not guides:
        raise TypeError(f"guide must be an AVBGuide or a module that holds one, found {type(unwrapped).__name__}")
    return guides


class Trainers:
    """One :class:`~avbvi.adversarial.AdversaryTrainer` per guide; does not keep guides alive.

    Args:
        lr: learning rate of the adversaries' Adam.
    """

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self._trainers: WeakKeyDictionary[AVBGuide, AdversaryTrainer] = WeakKeyDictionary()
        self._waiting: dict[str, Any] = {}

    def of(self, guide: AVBGuide) -> AdversaryTrainer:
        """A guide's trainer, made or restored on the first call."""
        if guide not in self._trainers:
            kind = AmortisedTrainer if guide.is_amortised else AdversaryTrainer
            trainer = kind(guide, self.lr)
            state = self._waiting.pop(guide._pyro_name, None)
            if state is None and len(self._waiting) == 1 and not self._trainers:
                # The only state for the only guide, whose name differs from process to process.
                _, state = self._waiting.popitem()
            if state is not None:
                trainer.load_state_dict(state)
            self._trainers[guide] = trainer
        return self._trainers[guide]

    def meet(self, guides: list[AVBGuide]) -> None:
        """Tell the trainers that there are that the outer step has its gradients."""
        for guide in guides:
            if guide in self._trainers:
                self._trainers[guide].meet(guide)

    def unmask(self, guide: AVBGuide) -> None:
        """Let a guide's adversary skip steps again where they were masked; waits for the device."""
        if guide in self._trainers:
            self._trainers[guide].unmask()

    def state_dict(self) -> dict[str, Any]:
        """States by the guides' names."""
        return self._waiting | {g._pyro_name: t.state_dict() for g, t in self._trainers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; states of guides not yet met wait for them."""
        by_name = {guide._pyro_name: trainer for guide, trainer in self._trainers.items()}
        for name, value in state.items():
            if name in by_name:
                by_name[name].load_state_dict(value)
            else:
                self._waiting[name] = copy.deepcopy(value)

    def forget(self, guide: AVBGuide) -> None:
        """Drop a guide's trainer and its state."""
        self._trainers.pop(guide, None)
        self._waiting.pop(guide._pyro_name, None)
