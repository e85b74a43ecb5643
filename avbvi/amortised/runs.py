"""The run of an amortised fit: what it does in its own way beside the loop that it shares with other fits."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .. import distributed
from ..diagnostics import Verdict, limits
from ..divided.batches import whole_size
from ..recovery import DRAWS, Level, Recovery, are_finite, broken_adversary, changed_spread
from ..rng import seeded
from ..training import Trainer
from ..training_state import TrainingState
from .evaluation import entropy_excess, held_out_logits
from .guide import AmortisedAVBGuide
from .minibatch import Minibatch
from .posterior import AmortisedPosterior
from .verdict import judge

#: Numbers that a look at the run's health may draw.
MOST = 2**20
#: Nats by which the learned log q may be too low for a look to count as good, and from which on the run has broken down
#: if it was good before.
SOUND, LOST = 0.2, 0.5
#: Draws for each datum, of all data, and data looked at, of the entropy that this is measured by.
ENTROPY_DRAWS, MOST_ENTROPY_DRAWS, ENTROPY_DATA = 500, 2**14, 8


class AmortisedRecovery(Recovery):
    """Watches an amortised run: parameters, draws and adversary on one minibatch, and losses per datum.

    Losses vary from minibatch to minibatch: their median is compared with the last one in units of their own spread
    and of the number of latents.

    With few latents the learned density is held against the entropy of neighbours: where q folds, the adversary does
    not see it and the learned ELBO rises. Once the two have agreed, only states in which they do are kept, and one
    in which they are half a nat apart is left; the adversary then keeps its rate, as the sampler has outrun it.

    Args:
        state: what the run's steps change.
        run: the run, for its arguments.
    """

    def __init__(self, state: TrainingState, run: AmortisedRun) -> None:
        super().__init__(state)
        self._run = run
        #: Excess of the learned entropy at the last look, where it could be measured.
        self._excess: float | None = None
        self._outrun = False

    def _data(self) -> Minibatch:
        guide = self._run.guide
        assert isinstance(guide, AmortisedAVBGuide)
        return guide.minibatch(*self._run.args, **self._run.kwargs)

    @torch.no_grad()
    def _spread(self) -> Tensor:
        """Standard deviations of the draws (dim,), averaged over data on the scale of logarithms."""
        with seeded(0):
            z = self._draws(self._data())
        return z.std(0).clamp_min(torch.finfo(z.dtype).tiny).log().mean(0).exp()

    def _draws(self, data: Minibatch) -> Tensor:
        guide = self._run.guide
        assert isinstance(guide, AmortisedAVBGuide)
        return guide.draw_for(data, self._number(data))

    def _number(self, data: Minibatch) -> int:
        width = data.context.shape[1] + self.guide.part("trunk").base_dim
        return min(max(MOST // (data.frame.size * width), 8), DRAWS)

    def _symptom(self, level: Level | None) -> str | None:
        symptom = super()._symptom(level)
        # What is kept depends on these too; processes could differ by rounding.
        symptom, self._excess, self._outrun = distributed.agreed((symptom, self._excess, self._outrun))
        return symptom

    @torch.no_grad()
    def _broken(self, last_spread: Tensor | None) -> str | None:
        guide = self._run.guide
        assert isinstance(guide, AmortisedAVBGuide)
        if not are_finite((*guide.parameters(), *guide.buffers())):
            return "a parameter of the guide is NaN or infinite"
        if not are_finite(self.state.model_tensors()):
            return "a parameter of the model is NaN or infinite"
        with seeded(0):
            data = self._data()
            z = self._draws(data)
            if not bool(torch.isfinite(z).all()):
                return "draws are not finite"
            t_q, t_r = held_out_logits(guide, data, self._number(data))
        if last_spread is not None:
            changed = changed_spread(self._spread(), last_spread)
            if changed is not None:
                return changed
        return broken_adversary(guide, t_q, t_r) or self._unseen(guide, data)

    def _unseen(self, guide: AmortisedAVBGuide, data: Minibatch) -> str | None:
        with seeded(0):
            measured = entropy_excess(guide, data, draws=ENTROPY_DRAWS, most=MOST_ENTROPY_DRAWS, seen=ENTROPY_DATA)
        self._excess = None if measured is None else measured.value
        self._outrun = (
            measured is not None and self._was_sound() and not measured.value - limits.SIGMAS * measured.stderr < LOST
        )
        if measured is None or not self._outrun:
            return None
        return (
            f"the adversary lost sight of q: the learned log q is {measured.value:.3g} nats per datum too low, by the "
            "entropy of nearest neighbours"
        )

    def _slower(self, caution: float, adversary_caution: float) -> tuple[float, float]:
        outrun, self._outrun = self._outrun, False
        return (0.5 * caution, adversary_caution) if outrun else super()._slower(caution, adversary_caution)

    def _was_sound(self) -> bool:
        return bool(self._snapshots) and self._snapshots[-1].get("excess", math.inf) <= SOUND

    def _keep(self, level: Level | None) -> None:
        excess = math.inf if self._excess is None else self._excess
        if self._excess is not None and excess > SOUND and self._was_sound():
            self._clear()
            return
        super()._keep(level)
        self._snapshots[-1]["excess"] = excess


class AmortisedRun(Trainer):
    """One run of :func:`avbvi.fit` with an amortised guide; losses are noted per datum."""

    def _amortised(self) -> AmortisedAVBGuide:
        assert isinstance(self.guide, AmortisedAVBGuide)
        return self.guide

    def _watch(self) -> Recovery:
        return AmortisedRecovery(self.state, self)

    def unit(self) -> float:
        reader = self._amortised().reader
        assert reader is not None
        frame = reader.frame(self.current, self.kwargs)
        return float(whole_size(self.batches, frame.size, frame.full_size))

    def _whereabouts(self) -> str:
        return f"epoch {self.batches.epoch}" if self.batches.epoch else f"step {int(self.guide.step_count)}"

    def _target_traced(self) -> AbstractContextManager[None]:
        return nullcontext()  # the data change from step to step, and the model learns

    def _review_target(self) -> None:
        pass

    def _look(self) -> None:
        """Draws of one minibatch say little of how the guide moves; nothing is noted."""

    def _verdict(self) -> Verdict:
        guide, run = self._amortised(), self.run
        data = guide.minibatch(*self.args, **self.kwargs)
        return judge(guide, self.model, data, skipped=run.skipped_steps, steps=run.steps)

    def _posterior(self, verdict: Verdict) -> AmortisedPosterior:
        return AmortisedPosterior(self.model, self.guide, self.args, self.kwargs, verdict=verdict, run=self.run)
