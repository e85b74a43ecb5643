"""The adversary's side of training an amortised guide: its steps on a minibatch, and averages of weights."""

from __future__ import annotations

import pyro
import torch
from torch import nn

from ..adversarial import AdversaryTrainer
from ..guides import AVBGuide
from .guide import AmortisedAVBGuide

#: With it the learned ELBO of a smooth sampler was off by .002 nats, without by .05 (docs/decisions.md).
POLISH_FACTOR = 4


class AmortisedTrainer(AdversaryTrainer):
    """Moves an amortised guide's adversary, and what its contrast learns, on the minibatch of a training call.

    The average of weights covers the model's own parameters too: a decoder is as good as the encoder it was
    trained with.
    """

    def begin(self, guide: AVBGuide, batch: int, pretrain_steps: int) -> None:
        """Give the adversary a head start, on one minibatch."""
        for _ in range(pretrain_steps):
            self.step(guide, batch, 1.0)

    def step(self, guide: AVBGuide, batch: int, factor: float) -> None:
        """One step of the adversary, from ``batch`` draws of q and of r for every datum, at ``factor`` times its rate.

        In the polish, when all else rests, there are POLISH_FACTOR times as many draws.

        A step whose draws or gradient are not finite is skipped and counted in the guide's ``skipped_steps``; a
        gradient that is much longer than those before is shortened.
        """
        assert isinstance(guide, AmortisedAVBGuide)
        data, given = guide.current_call()
        if bool(guide.polishing):
            batch = POLISH_FACTOR * batch
        adversary, contrast, sampler = guide.part("adversary"), guide.part("contrast"), guide.part("sampler")
        with torch.no_grad():
            noise = sampler.sample_noise(torch.Size((batch, data.frame.size)), like=guide.anchor)
            z_q = sampler(noise, data.context)
            z = torch.cat([z_q, given.sample(batch)])
            if not bool(torch.isfinite(z).all()):
                guide.skipped_steps += 1
                return
            features, log_prior = given.features(z), guide.log_prior_if_used(z, data)
            context = data.context.detach()
        with torch.enable_grad():
            t = adversary(features, context, **log_prior)
            loss = adversary.objective.loss(t[:batch], t[batch:])
            own = contrast.loss(z_q, context, sampler)
            if own is not None:
                loss = loss + own
        self._move(guide, loss, factor)

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
