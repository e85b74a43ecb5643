"""AdversarialELBO: a Pyro ELBO that trains the adversary before each step of the guide."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO
from pyro.optim import PyroOptim
from torch import Tensor

from .amortised.guide import AmortisedAVBGuide
from .annealing import Annealed
from .arguments import flag, instance, integer, positive_integer, positive_number
from .checks import check_store
from .control import StepPlan
from .diagnostics import choose_stage
from .direct import is_direct, loss_and_gradients, negative_elbo
from .distributed import agreed
from .divided.steps import averaged, copy_start, divided
from .errors import NonFiniteError
from .gradients import StepGuard, explain_non_finite, with_gradient
from .guides import ADVERSARIAL, TRUNK, AVBGuide
from .optimisers import scheduled_adam
from .particles import PARTICLES, PARTICLES_PER_DATUM, default_adversary_batch, set_particles, set_plate_nesting
from .recording.steps import CompiledStep
from .remedies import spelled
from .schedules import Clock, OpenEnded, Schedule
from .targets import Model
from .trainers import Trainers, avb_guides
from .trunk_stage import TrunkStage

#: Where ``AdversarialELBO.state_dict`` keeps what belongs to no single guide.
LOSS = "loss"


class AdversarialELBO(ELBO):
    """ELBO of a model and a guide that contains :class:`~avbvi.AVBGuide` (AVB, Algorithms 1 and 2).

    A training call (``loss_and_grads``, or ``differentiable_loss`` with gradients enabled) first moves
    contrast and adversary, then evaluates the wrapped ELBO. ``loss`` and anything under ``no_grad``
    change nothing.

    With ``steps`` known, a trainable trunk is fitted first by the plain ELBO and then frozen, the target
    is annealed, learning rates decay, and after the last step the better of trunk and adversarial
    stage is kept (:func:`~avbvi.diagnostics.choose_stage`). Where the trunk alone is close enough to the
    posterior it is trained to the end (:class:`~avbvi.Schedule`). Without, a default guide gets an affine
    trunk and there are no stages.

    Args:
        elbo: the ELBO of the outer step; by default ``Trace_ELBO(num_particles,
            vectorize_particles=vectorize_particles)``. ``TraceEnum_ELBO`` sums out enumerated latents.
        steps: number of training calls to come.
        num_particles: draws in the outer step; by default 512, and with an amortised guide one for each datum.
        vectorize_particles: run the model once for all draws, inside an outer plate.
        adversary_steps: adversary steps per outer step.
        adversary_batch: draws of q and of r in each adversary step; half of ``num_particles`` by default. With an
            amortised guide they are draws for each datum, by default as many as ``num_particles``.
        adversary_lr: learning rate of the adversary's Adam (betas 0.5, 0.999).
        pretrain_steps: adversary steps before the sampler's first.
        schedule: division of the run.

    Raises:
        ValueError: non-positive counts or rates, or ``num_particles`` beside an ``elbo`` that has its own.
        TypeError: ``elbo`` is no Pyro ELBO, or the guide holds no AVBGuide.

    Example:
        >>> import avbvi
        >>> from pyro.infer import SVI
        >>> model = avbvi.LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(2,))
        >>> guide = avbvi.AVBGuide(model, trunk=avbvi.AffineTrunk())
        >>> elbo = avbvi.AdversarialELBO(num_particles=32, pretrain_steps=5)
        >>> svi = SVI(model, guide, elbo.optimizer(lr=2e-3), loss=elbo)
        >>> losses = [svi.step() for _ in range(3)]  # -ELBO of each step, in nats
        >>> guide.is_adversarial, elbo.settings()["adversary_steps"]
        (True, 2)

    Source: AVB (Mescheder, Nowozin and Geiger 2017), Algorithm 1 with ``PriorContrast``, Algorithm 2 with the other
    contrasts, and Prop. 2 for the gradient; ``anneal`` and ``polish`` of the schedule are this project's.
    """

    @spelled
    def __init__(
        self,
        elbo: ELBO | None = None,
        *,
        steps: int | None = None,
        num_particles: int | None = None,
        vectorize_particles: bool | None = None,
        adversary_steps: int = 2,
        adversary_batch: int | None = None,
        adversary_lr: float = 4e-3,
        pretrain_steps: int = 100,
        schedule: Schedule | None = None,
    ) -> None:
        if elbo is not None and not isinstance(elbo, ELBO):
            raise TypeError(f"elbo must be a Pyro ELBO such as Trace_ELBO(), found {type(elbo).__name__}")
        if elbo is not None and (num_particles is not None or vectorize_particles is not None):
            raise ValueError("num_particles and vectorize_particles belong to the given elbo; set them there")
        for name, value in (
            ("steps", steps),
            ("num_particles", num_particles),
            ("adversary_steps", adversary_steps),
            ("adversary_batch", adversary_batch),
        ):
            if value is not None:
                positive_integer(name, value)
        positive_number("adversary_lr", adversary_lr)
        if integer("pretrain_steps", pretrain_steps) < 0:
            raise ValueError(f"pretrain_steps must not be negative, found {pretrain_steps}")
        if schedule is not None:
            instance("schedule", schedule, Schedule, "a Schedule")
        vectorize = True if vectorize_particles is None else flag("vectorize_particles", vectorize_particles)
        self.elbo: ELBO = elbo or Trace_ELBO(num_particles=num_particles or PARTICLES, vectorize_particles=vectorize)
        self.num_particles: int
        super().__init__(
            num_particles=self.elbo.num_particles,
            vectorize_particles=self.elbo.vectorize_particles,
            max_plate_nesting=self.elbo.max_plate_nesting,
        )
        self.steps = steps
        self.adversary_steps = adversary_steps
        self.adversary_lr = adversary_lr
        self.pretrain_steps = pretrain_steps
        self.schedule: Schedule = schedule or Schedule()
        self._given_particles = elbo is not None or num_particles is not None
        self._given_batch = adversary_batch
        self.adversary_batch: int = self._given_batch or default_adversary_batch(
            self.elbo.num_particles, amortised=False
        )
        #: For runs by the clock, and for those whose ``steps`` a stopping rule decides on (set by ``fit``).
        self.clock: Clock | None = None
        self.open_ended: OpenEnded | None = None
        self._trainers = Trainers(adversary_lr)
        self._factor = 1.0
        self._guard = StepGuard()
        #: By what the outer learning rates and the adversary's are multiplied (lowered by ``fit`` when it rolls back).
        self.caution: float = 1.0
        self.adversary_caution: float = 1.0
        #: The guide of the last call, a weak reference.
        self._guide: Callable[[], Any] = lambda: None
        #: Inverse temperature of the last training call.
        self.beta: float = 1.0
        #: Compiled arithmetic of the one guide's steps (set by ``fit``).
        self.compiled: CompiledStep | None = None
        #: Called with a guide whose trunk is about to be frozen.
        self.before_adversarial: Callable[[AVBGuide], object] | None = None

    def settings(self) -> dict[str, Any]:
        """What distinguishes this loss from another, as plain data; ``steps`` apart."""
        return {
            "elbo": type(self.elbo).__name__,
            "num_particles": self.num_particles,
            "vectorize_particles": self.vectorize_particles,
            "adversary_steps": self.adversary_steps,
            "adversary_batch": self.adversary_batch,
            "adversary_lr": self.adversary_lr,
            "pretrain_steps": self.pretrain_steps,
            "schedule": asdict(self.schedule),
        }

    def adapt(self, guide: Any) -> None:
        """Set the numbers of draws that were left open to this guide's defaults; done on the first call otherwise.

        Raises:
            TypeError: the guide holds no AVBGuide.
        """
        amortised = any(g.is_amortised for g in avb_guides(guide))
        if not self._given_particles:
            set_particles(self.elbo, PARTICLES_PER_DATUM if amortised else PARTICLES)
            self.num_particles = self.elbo.num_particles
        self.adversary_batch = self._given_batch or default_adversary_batch(self.num_particles, amortised=amortised)

    # -- the outer optimiser ------------------------------------------------------------------------

    def lr_factor(self) -> float:
        """Learning rate of the current training call relative to its start."""
        return self.caution * self._factor

    def optimizer(self, lr: float = 2e-3, model_lr: float | None = None) -> PyroOptim:
        """Adam (betas 0.5, 0.999) for ``SVI``, its rate decaying by this ELBO's schedule.

        ``model_lr`` is the rate of the model's own parameters, those of a decoder, say; by default it is ``lr``.

        Raises:
            TypeError: a rate is no number.
            ValueError: a rate is not positive.
        """
        lr = positive_number("lr", lr)
        model_lr = lr if model_lr is None else positive_number("model_lr", model_lr)
        return scheduled_adam(self.lr_factor, lr, model_lr, lambda: self._guide())

    # -- Pyro's ELBO interface ------------------------------------------------------------------------

    def _get_trace(self, model: Model, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.elbo._get_trace(model, guide, args, kwargs)

    def loss(self, model: Model, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Estimate of -ELBO of ``model`` and ``guide``, in nats; trains nothing."""
        self._ready(model, guide, args, kwargs)
        return float(self.elbo.loss(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: Model, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """-ELBO of ``model`` and ``guide`` as a tensor () to be differentiated, for ``torch.optim``.

        It trains the adversary, unless under ``no_grad``.

        Raises:
            NonFiniteError: the loss is NaN or infinite.
        """
        guides = self._ready(model, guide, args, kwargs)
        if not torch.is_grad_enabled():
            value: Tensor = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
            return value
        with divided(self._training(model, guides, args, kwargs), self, guides, args, kwargs) as (annealed, n):
            if is_direct(self.elbo, guide):
                value = negative_elbo(guide, guide.target(), n)
            else:
                value = self.elbo.differentiable_loss(annealed, guide, *args, **kwargs)
        if not bool(torch.isfinite(value)):
            raise NonFiniteError(explain_non_finite(f"the loss is {float(value.detach())}"))
        if not self._moving(guides):
            # Gradients of zero would still move the sampler, by Adam's momentum; None does not.
            for p in with_gradient(guide):
                p.grad = None
            value = value.detach().requires_grad_()
        self._finish_in_time(guides)
        return value

    def loss_and_grads(self, model: Model, guide: Any, *args: Any, **kwargs: Any) -> float:
        """One training call: adversary and contrast, then -ELBO with gradients; a non-finite one is skipped.

        The gradients are left in the parameters of ``model`` and ``guide``; returned is -ELBO in nats.

        Raises:
            NonFiniteError: too many non-finite losses or gradients in a row.
        """
        first = not all(g.started for g in avb_guides(guide))
        guides = self._ready(model, guide, args, kwargs)
        if first:  # SVI: fit has started its guide before, and trains the model's own parameters
            check_store(model, args, kwargs)
        with divided(self._training(model, guides, args, kwargs), self, guides, args, kwargs) as (annealed, n):
            if is_direct(self.elbo, guide):
                loss = averaged(lambda: loss_and_gradients(guide, n, self.compiled), guide)
            else:
                loss = averaged(lambda: self.elbo.loss_and_grads(annealed, guide, *args, **kwargs), guide)
        self._trainers.meet(guides)
        gradients = with_gradient(guide)
        finite = self._guard.admits(float(loss), [p.grad for p in gradients if p.grad is not None], guides)
        if not finite or not self._moving(guides):
            for p in gradients:
                p.grad = None
        self._finish_in_time(guides)
        return loss

    def _finish_in_time(self, guides: list[AVBGuide]) -> None:
        if self.steps is not None and self.clock is None:
            for g in guides:
                if int(g.step_count) == self.steps and g.comparison is None:
                    self.finish(g)

    def skip(self, guide: AVBGuide) -> None:
        """Count a step of the ``guide`` that an error kept from being done, and drop what gradients it left.

        Raises:
            NonFiniteError: it is one too many in a row.
        """
        for p in with_gradient(guide):
            p.grad = None
        self._guard.count([guide])

    def forgive(self) -> None:
        """Count skipped steps anew."""
        self._guard.skipped_in_a_row = 0

    def begin_run(self) -> None:
        """Forget what an earlier run has left behind: skipped steps, lengths of gradients, lowered rates."""
        self._guard = StepGuard()
        self.caution = self.adversary_caution = 1.0
        self.before_adversarial = None

    # -- a training call --------------------------------------------------------------------------------

    def _ready(self, model: Model, guide: Any, args: Any, kwargs: Any) -> list[AVBGuide]:
        guides = avb_guides(guide)
        self.adapt(guide)
        self._guide = weakref.ref(poutine.unwrap(guide))
        for g in guides:
            if g.prototype_trace is None and self.steps is None and self.clock is None:
                g.use_affine_trunk()
            g.setup(*args, **kwargs)
            g._last_arguments = (args, kwargs)
            target = g.bind(model, args, kwargs, vectorize=self.vectorize_particles)
            if not bool(g.started):
                if target is not None:
                    g.check(target)
                g.start(target)
                copy_start(g, model)
        if self.elbo.max_plate_nesting == math.inf:
            set_plate_nesting(self.elbo, model, guide, guides[0].target(*args, **kwargs), args, kwargs)
        return guides

    @contextmanager
    def _training(self, model: Model, guides: list[AVBGuide], args: Any, kwargs: Any) -> Iterator[Any]:
        """Stage, adversary steps and annealing of one training call; a context that gives the annealed model."""
        self.beta = 1.0
        with ExitStack() as calls:
            for g in guides:
                if isinstance(g, AmortisedAVBGuide):
                    calls.enter_context(g.training_call(args, kwargs))
                plan = self.plan(g)
                if not g.is_amortised:
                    self.beta = float(plan.beta)
                self.carry_out(g, plan)
            yield calls.enter_context(Annealed(model, guides, self.beta))

    def progress(self, guide: AVBGuide) -> float:
        """Share of the ``guide``'s run that is done, in [0, 1]; 0 where no length is known."""
        if self.clock is not None:
            return self.clock.progress()
        return 0.0 if self.steps is None else min(int(guide.step_count) / self.steps, 1.0)

    def _progress_of_training(self, guide: AVBGuide) -> float:
        """Share of the steps or, by the clock, of the time since the first step: the starts have had theirs before."""
        # The time may run out between the caller's look at the clock and this one: the step still belongs to the run.
        progress = min(self.progress(guide), math.nextafter(1.0, 0.0))
        if self.clock is not None and int(guide.step_count) == 0:
            guide.began.fill_(progress)
        left = max(1.0 - float(guide.began), 1e-6)  # starts may have taken it all
        return min(max(progress - float(guide.began), 0.0) / left, math.nextafter(1.0, 0.0))

    def plan(self, guide: AVBGuide) -> StepPlan:
        """Count a step of the guide, move it through its stages, and say what the step is to be."""
        if self.steps is not None and self.clock is None and int(guide.step_count) >= self.steps:
            self._factor = 0.0  # the run is over; the choice of stage stands
            return StepPlan(outer=0.0)
        timed = self.steps is not None or self.clock is not None
        plan = self._plan_amortised(guide, timed) if guide.is_amortised else self._plan_in_stages(guide, timed)
        guide.step_count += 1
        guide.comparison = None
        self._factor = float(plan.outer)
        return plan

    def _plan_in_stages(self, guide: AVBGuide, timed: bool) -> StepPlan:
        share = 0.0
        if guide.part("trunk").is_trainable and timed:
            share = self.schedule.trunk if self.clock is not None else self.schedule.trunk_share_of_steps
            weighted, length = is_direct(self.elbo, guide), self.open_ended
            stage = TrunkStage(guide, self.schedule, share, guide.target(), weighted=weighted, length=length)
            share = stage.share
        progress = self._progress_of_training(guide)
        if not guide.is_adversarial and progress < share:
            beta, factor = stage.advance(progress)
            return StepPlan(beta=beta, outer=factor)
        done = (progress - share) / (1.0 - share) if timed else 0.0
        beta = self.schedule.beta(done) if timed and share == 0.0 else 1.0
        guide._beta = beta
        if not guide.is_adversarial:
            self._enter_adversarial(guide)
        return self._trainers.of(guide).follow(guide, self.schedule, done, timed)._replace(beta=beta)

    def _plan_amortised(self, guide: AVBGuide, timed: bool) -> StepPlan:
        """There are no stages; the head start is left to the step, which has a minibatch."""
        done = self._progress_of_training(guide) if timed else 0.0
        begins = not int(guide.adversarial_steps)
        plan = self._trainers.of(guide).follow(guide, self.schedule, done, timed)
        return plan._replace(kl_weight=self.schedule.kl_weight(done) if timed else 1.0, begins=begins)

    def carry_out(self, guide: AVBGuide, plan: StepPlan) -> None:
        """What a step of the ``guide`` does before the outer one, by its ``plan``: averaging, adversary's steps."""
        if plan.adversary is None:
            return
        trainer = self._trainers.of(guide)
        trainer.compiled = self.compiled
        guide._beta = plan.beta
        if isinstance(guide, AmortisedAVBGuide):
            guide.set_kl_weight(plan.kl_weight)
            trainer.meet(guide)
            if plan.begins:
                trainer.begin(guide, self.adversary_batch, self.pretrain_steps)
        if plan.average is not None:
            trainer.update_average(guide, plan.average)
        trainer.steps(guide, self.adversary_batch, self.adversary_caution * plan.adversary, self.adversary_steps)

    def _moving(self, guides: list[AVBGuide]) -> bool:
        """Whether the outer step moves anything: not while the adversaries are polished."""
        return not all(bool(g.polishing) for g in guides)

    def _enter_adversarial(self, guide: AVBGuide) -> None:
        if self.before_adversarial is not None:
            self.before_adversarial(guide)
        for p in guide.part("trunk").parameters():
            p.grad = None
        guide.stage.fill_(ADVERSARIAL)
        self._trainers.of(guide).begin(guide, self.adversary_batch, self.pretrain_steps)

    def finish(self, guide: AVBGuide) -> None:
        """Keep the better of the ``guide``'s trunk and adversarial stage; called after the last of ``steps``."""
        if guide.is_amortised:
            return
        target = guide.target()
        if guide.is_adversarial and guide.part("trunk").is_trainable and target is not None:
            guide.comparison = agreed(choose_stage(guide, target))
            if not guide.comparison.keep_adversarial:
                guide.stage.fill_(TRUNK)

    # -- state --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Adversaries' optimisers and averages of the samplers' weights, by the guides' names; see ``LOSS``."""
        own = {"caution": self.caution, "adversary_caution": self.adversary_caution}
        return {LOSS: self._guard.state_dict() | own} | self._trainers.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the ``state`` that :meth:`state_dict` gave; states of guides not yet met wait for them."""
        own = state.get(LOSS)
        if own is not None:
            self._guard.load_state_dict(own)
            self.caution, self.adversary_caution = own["caution"], own["adversary_caution"]
        self._trainers.load_state_dict({name: value for name, value in state.items() if name != LOSS})

    def forget(self, guide: AVBGuide) -> None:
        """Drop the state of a guide's adversary, as before its stage."""
        self._trainers.forget(guide)
