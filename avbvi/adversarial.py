"""The adversary's side of training one guide: its optimiser and steps, and the average of the sampler's weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .adversaries import Hint
from .control import Factor, StepPlan
from .divided.division import check_hint, draws_divided, everyones_draws, hint_shared, own_part
from .guides import AVBGuide
from .hints import hint_at
from .masking import unless
from .optimisers import AdversaryAdam
from .recording.steps import CompiledStep, annealed_by, annealing
from .schedules import Schedule

WARM_UP_STEPS = 100
#: Adversary steps whose draws are made at once, between which the contrast rests.
TOGETHER = 2


class AdversaryTrainer:
    """Moves a guide's adversary and contrast, and follows its sampler's weights.

    The guide is handed in with each call: a trainer belongs to one guide but does not keep it alive.

    Args:
        guide: the guide, set up.
        lr: learning rate of the adversary's Adam (betas 0.5, 0.999).
    """

    def __init__(self, guide: AVBGuide, lr: float) -> None:
        self.adam: AdversaryAdam = AdversaryAdam(guide.adversary_parameters(), lr)
        self.average: dict[str, Tensor] = {}
        #: The model's own parameters, by their names in Pyro's store, that outer steps have moved.
        self.met: set[str] = set()
        self.names: list[str] = [f"adversary.{name}" for name, _ in guide.part("adversary").named_parameters()]
        #: Runs the steps' arithmetic from compiled graphs; ``None`` runs it as it is.
        self.compiled: CompiledStep | None = None
        #: Masked steps that were not taken, a 0-d tensor; ``None`` where steps are skipped by the host.
        self.skipped: Tensor | None = None

    def begin(self, guide: AVBGuide, batch: int, pretrain_steps: int) -> None:
        """Fit the contrast to the sampler from scratch and give the adversary a head start."""
        guide.part("sampler").begin(guide.part("trunk"))
        guide.part("contrast").begin(guide.part("trunk"), guide.draw_base(max(4096, 8 * batch)))
        self.steps(guide, batch, 1.0, pretrain_steps)

    def steps(self, guide: AVBGuide, batch: int, factor: float | Tensor, count: int) -> None:
        """``count`` steps of the adversary at ``factor`` times its rate, each with ``batch`` draws of q and of r.

        The contrast follows the draws of q. A step whose draws or gradient are not finite is skipped and counted in
        the guide's ``skipped_steps``, or in ``skipped`` once steps are masked; a gradient that is much longer than
        those before is shortened.
        """
        for first in range(0, count, TOGETHER):
            self._steps_together(guide, batch, factor, min(TOGETHER, count - first))

    def follow(self, guide: AVBGuide, schedule: Schedule, done: float, timed: bool) -> StepPlan:
        """The plan of a step at a point of the adversarial stage, in [0, 1); the polish begins when it is time.

        ``timed``: the run's length is known.
        """
        guide.adversarial_steps += 1
        count = int(guide.adversarial_steps)
        polishing = timed and done >= 1.0 - schedule.polish
        if polishing and not bool(guide.polishing):
            self.load_average(guide)
            guide.polishing.fill_(True)
        warm = min(1.0, count / WARM_UP_STEPS)
        # The adversary keeps on learning while the sampler slows down, and comes to rest in the polish.
        if polishing:
            return StepPlan(outer=0.0, adversary=schedule.adversary_floor * (1.0 - done) / schedule.polish)
        factor = schedule.factor(done / (1.0 - schedule.polish) if timed else 0.0)
        return StepPlan(
            outer=warm * factor,
            adversary=warm * max(schedule.adversary_floor, factor),
            average=min(schedule.average, (1.0 + count) / (10.0 + count)) if timed else None,
        )

    def step(self, guide: AVBGuide, batch: int, factor: float | Tensor) -> None:
        """One of :meth:`steps`."""
        self.steps(guide, batch, factor, 1)

    def _steps_together(self, guide: AVBGuide, batch: int, factor: float | Tensor, count: int) -> None:
        """Some of :meth:`steps`, whose draws are made at once: neither sampler nor target moves between them."""
        with draws_divided("adversary_batch", batch, groups=count) as n:
            base_q = everyones_draws(guide.draw_base(n))
            finite = torch.isfinite(base_q).all()
            # The contrast's running moments would never recover from draws that are not finite.
            if self.skipped is None:
                if bool(finite):
                    self._steps_at(guide, base_q, count, factor, finite)
                else:
                    guide.skipped_steps += count
                return
            with unless(~finite, (guide.part("contrast"), guide.part("adversary"))):
                self._steps_at(guide, torch.where(finite, base_q, 0.0), count, factor, finite)

    def _steps_at(self, guide: AVBGuide, base_q: Tensor, count: int, factor: float | Tensor, finite: Tensor) -> None:
        """Steps at draws (count * batch, base_dim) of q, which the contrast follows, and as many of r."""
        if self.compiled is None:
            with torch.no_grad():
                seen = prepared(guide, base_q, *annealing(guide), count=count)
        else:
            seen = self.compiled.run(guide, prepared, base_q, *annealing(guide), count=count)
        rows = len(seen[0]) // count
        for i in range(count):
            part = [value[rows * i : rows * (i + 1)] for value in seen]
            gradients: Sequence[Tensor | None]
            if self.compiled is None:
                loss = adversary_loss(guide, *part)
                gradients = torch.autograd.grad(loss, self.adam.parameters, allow_unused=True)
            else:
                _, gradients = self.compiled.with_gradients(guide, adversary_loss, self.names, *part)
            self._move(guide, gradients, factor, finite)

    def _move(self, guide: AVBGuide, gradients: Sequence[Tensor | None], factor: Factor, finite: Tensor) -> None:
        """One step of the adversary's optimiser, unless the gradients or the draws are not finite."""
        if self.skipped is None:
            if not self.adam.move_along(gradients, factor):
                guide.skipped_steps += 1
        else:
            self.skipped += self.adam.move_masked(gradients, factor, finite)

    # -- masked steps -------------------------------------------------------------------------------------

    def mask(self, like: Tensor) -> None:
        """From now on mask steps on the device of ``like`` instead of reading back whether to skip them.

        They are counted in ``skipped``; whoever masks adds what :meth:`take_skipped` gives to ``skipped_steps``.
        """
        if self.skipped is None:
            self.skipped = torch.zeros((), device=like.device)
            self.adam.mask(like)

    def take_skipped(self) -> Tensor:
        """Number () of masked steps that were not taken since the last call."""
        assert self.skipped is not None
        taken = self.skipped.clone()
        self.skipped.zero_()
        return taken

    def unmask(self) -> None:
        """Back to skipping; waits for the device."""
        self.skipped = None
        self.adam.unmask()

    def _averaged(self, guide: AVBGuide) -> dict[str, nn.Parameter]:
        return dict(guide.part("sampler").named_parameters())

    def meet(self, guide: AVBGuide) -> None:
        """Told that the outer step has its gradients."""

    @torch.no_grad()
    def update_average(self, guide: AVBGuide, decay: Factor) -> None:
        """Exponential moving average of the sampler's weights, from which the final draws come."""
        averaged = self._averaged(guide)
        for name, p in averaged.items():
            if name not in self.average:
                self.average[name] = p.detach().clone()
        weight = 1.0 - decay
        if not isinstance(weight, Tensor):
            torch._foreach_lerp_([self.average[name] for name in averaged], list(averaged.values()), weight)
            return
        for name, p in averaged.items():  # all at once the weight would be read back
            self.average[name].lerp_(p, weight.to(p))

    @torch.no_grad()
    def load_average(self, guide: AVBGuide) -> None:
        """Give the sampler the averaged weights."""
        for name, p in self._averaged(guide).items():
            if name in self.average:
                p.copy_(self.average[name])

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, the averaged weights and the usual length of a gradient."""
        return {**self.adam.state_dict(), "average": dict(self.average), "met": sorted(self.met)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.adam.load_state_dict(state)
        self.average = copy.deepcopy(state["average"])
        self.met = set(state["met"])


def prepared(guide: AVBGuide, base_q: Tensor, *beta: Tensor, count: int) -> tuple[Tensor, ...]:
    """What the adversary sees in ``count`` steps: features and, where it asks for them, log-ratios and scores.

    The contrast follows the draws of q, base_q (count * batch, base_dim), and gives as many of its own; of several
    processes these are the draws of all, and what is seen is this one's. Each step's draws lie side by side, those of q
    before those of r: (2 * count * batch, ...). ``beta``: see
    :func:`~avbvi.recording.steps.annealing`.
    """
    adversary, contrast = guide.part("adversary"), guide.part("contrast")
    contrast.update(base_q)
    base_q, base_r = own_part(base_q), own_part(contrast.sample(len(base_q)))
    batch = len(base_q) // count
    base = torch.stack([base_q.reshape(count, batch, -1), base_r.reshape(count, batch, -1)], 1).flatten(0, 2)
    log_r = contrast.log_prob(base)
    with annealed_by(guide, beta), hint_shared(log_r.new_empty(count * batch)):
        hint = hint_at(guide, base, log_r)
    if hint is None:
        return (contrast.features(base),)
    adversary.observe(check_hint(everyones_draws(hint.log_ratio.reshape(count, 2, batch)[:, 0].flatten())))
    return contrast.features(base), *(value for value in hint if value is not None)


def adversary_loss(guide: AVBGuide, features: Tensor, *hint: Tensor) -> Tensor:
    """The adversary's loss at features of as many draws of q as of r, and their hints, of :func:`prepared`."""
    adversary = guide.part("adversary")
    with torch.enable_grad():
        t = adversary(features, Hint(*hint) if hint else None)
        loss: Tensor = adversary.objective.loss(*t.chunk(2))
    return loss


@torch.no_grad()
def adversary_logits(guide: AVBGuide, batch: int) -> Tensor:
    """The adversary's output T at ``batch`` fresh draws of q, then as many of the contrast: (2 * batch,)."""
    contrast = guide.part("contrast")
    base = torch.cat([guide.draw_base(batch), contrast.sample(batch)])
    t: Tensor = guide.part("adversary")(contrast.features(base), hint_at(guide, base, contrast.log_prob(base)))
    return t
