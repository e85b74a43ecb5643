"""The adversary's side of training an amortised guide: its steps on a minibatch, and averages of weights."""

from __future__ import annotations

import math

import pyro
import torch
from torch import Tensor, nn

from .. import distributed
from ..adversarial import AdversaryTrainer
from ..control import Factor
from ..guides import AVBGuide
from .guide import AmortisedAVBGuide

#: With it the learned ELBO of a smooth sampler was off by .002 nats, without by .05 (docs/decisions.md).
POLISH_FACTOR = 4
#: Draws per datum that are made at once.
MOST_DRAWS = 1024


class AmortisedTrainer(AdversaryTrainer):
    """Moves an amortised guide's adversary, and what its contrast learns, on the minibatch of a training call.

    The average of weights covers the model's own parameters too: a decoder is as good as the encoder it was
    trained with.
    """

    def begin(self, guide: AVBGuide, batch: int, pretrain_steps: int) -> None:
        """Give the adversary a head start, on one minibatch."""
        self.steps(guide, batch, 1.0, pretrain_steps)

    def steps(self, guide: AVBGuide, batch: int, factor: Factor, count: int) -> None:
        """``count`` steps of the adversary at ``factor`` times its rate, with ``batch`` draws of q and r per datum.

        In the polish, when all else rests, there are POLISH_FACTOR times as many draws. The draws of all steps are made
        at once: the sampler does not move between them, and sees each context once.

        A step whose draws or gradient are not finite is skipped and counted in the guide's ``skipped_steps``; a
        gradient that is much longer than those before is shortened.
        """
        assert isinstance(guide, AmortisedAVBGuide)
        data, given = guide.current_call()
        if bool(guide.polishing):
            batch = POLISH_FACTOR * batch
        together = max(1, min(count, MOST_DRAWS // batch))
        for first in range(0, count, together):
            n = min(together, count - first)
            with torch.no_grad():
                z_q = guide.draw_for(data, n * batch)
                z_r = given.sample(n * batch)
                features = given.features(z_q), given.features(z_r)
                log_prior = [guide.log_prior_if_used(z, data) for z in (z_q, z_r)]
            for part in range(n):
                rows = slice(part * batch, (part + 1) * batch)
                self._step(
                    guide,
                    (z_q[rows], z_r[rows]),
                    torch.cat([f[rows] for f in features]),
                    {name: torch.cat([of[name][rows] for of in log_prior]) for name in log_prior[0]},
                    data.context.detach(),
                    factor,
                )

    def step(self, guide: AVBGuide, batch: int, factor: Factor) -> None:
        """One of :meth:`steps`."""
        self.steps(guide, batch, factor, 1)

    def _step(
        self,
        guide: AVBGuide,
        draws: tuple[Tensor, Tensor],
        features: Tensor,
        log_prior: dict[str, Tensor],
        context: Tensor,
        factor: Factor,
    ) -> None:
        z_q, z_r = draws
        finite = torch.isfinite(z_q).all() & torch.isfinite(z_r).all()
        skips = self.skipped is None and not bool(finite)
        if skips and distributed.world_size() == 1:
            guide.skipped_steps += 1
            return
        adversary, contrast = guide.part("adversary"), guide.part("contrast")
        with torch.enable_grad():
            t = adversary(features, context, **log_prior)
            loss = adversary.objective.loss(t[: len(z_q)], t[len(z_q) :])
            own = contrast.loss(z_q, context, guide.part("sampler"))
            if own is not None:
                loss = loss + own
            if skips:
                loss = math.nan * loss  # the others have to be told, and skip the step too
        self._move(guide, torch.autograd.grad(loss, self.adam.parameters, allow_unused=True), factor, finite)

    def _averaged(self, guide: AVBGuide) -> dict[str, nn.Parameter]:
        own = {id(p) for p in guide.parameters()}
        model = {
            f"model:{name}": p
            for name, p in pyro.get_param_store().named_parameters()
            if id(p) not in own and name in self.met
        }
        return super()._averaged(guide) | model

    def meet(self, guide: AVBGuide) -> None:
        """Take note of the model's parameters that the outer step gave a gradient."""
        own = {id(p) for p in guide.parameters()}
        for name, p in pyro.get_param_store().named_parameters():
            if p.grad is not None and id(p) not in own:
                self.met.add(name)
