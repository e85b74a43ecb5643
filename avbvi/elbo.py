"""AdversarialELBO: a Pyro ELBO that trains the adversary before each step of the guide."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import PyroOptim
from pyro.params.param_store import normalize_param_name
from torch import Tensor, nn

from .adversarial import AdversaryTrainer
from .amortised.guide import AmortisedAVBGuide
from .amortised.training import AmortisedTrainer
from .annealing import Annealed
from .arguments import flag, instance, integer, positive_integer, positive_number
from .diagnostics import choose_stage
from .errors import NonFiniteError
from .gradients import GradientBound, explain_non_finite, with_gradient
from .guides import ADVERSARIAL, TRUNK, AVBGuide
from .rng import seeded
from .schedules import Clock, OpenEnded, Schedule, ScheduledAdam
from .targets import Model
from .trunk_stage import TrunkStage

MOST_SKIPPED_IN_A_ROW = 50
#: Draws in the outer step by default; for each datum, where the guide is amortised.
PARTICLES, PARTICLES_PER_DATUM = 512, 1
WARM_UP_STEPS = 100
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
    """

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
        self.elbo = elbo or Trace_ELBO(num_particles=num_particles or PARTICLES, vectorize_particles=vectorize)
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
        self.schedule = schedule or Schedule()
        self._given_particles = elbo is not None or num_particles is not None
        self._given_batch = adversary_batch
        self.adversary_batch = adversary_batch or max(self.elbo.num_particles // 2, 64)
        #: For runs by the clock, and for those whose ``steps`` a stopping rule decides on (set by ``fit``).
        self.clock: Clock | None = None
        self.open_ended: OpenEnded | None = None
        self._trainers: WeakKeyDictionary[AVBGuide, AdversaryTrainer] = WeakKeyDictionary()
        self._waiting: dict[str, Any] = {}
        self._factor = 1.0
        self._adversary_factor = 1.0
        self._skipped_in_a_row = 0
        self._bound = GradientBound()
        #: By what all learning rates are multiplied (lowered by ``fit`` when it has to roll back).
        self.caution = 1.0
        self._last_guide: weakref.ref[Any] | None = None
        #: Inverse temperature of the last training call.
        self.beta = 1.0
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
        amortised = any(g.is_amortised for g in _avb_guides(guide))
        if not self._given_particles:
            particles = PARTICLES_PER_DATUM if amortised else PARTICLES
            if particles != self.num_particles:
                self.num_particles = self.elbo.num_particles = particles
                self.elbo.max_plate_nesting = math.inf  # the plate over draws has come or gone
        default = self.num_particles if amortised else max(self.num_particles // 2, 64)
        self.adversary_batch = self._given_batch or default

    # -- the outer optimiser ------------------------------------------------------------------------

    def lr_factor(self) -> float:
        """Learning rate of the current training call relative to its start."""
        return self.caution * self._factor

    def optimizer(self, lr: float = 2e-3, model_lr: float | None = None) -> PyroOptim:
        """Adam (betas 0.5, 0.999) for ``SVI``, its rate decaying by this ELBO's schedule.

        ``model_lr`` is the rate of the model's own parameters, those of a decoder, say; by default it is ``lr``.
        """
        lr = positive_number("lr", lr)
        model_lr = lr if model_lr is None else positive_number("model_lr", model_lr)

        def rate(name: str) -> dict[str, float]:
            return {"lr": lr if self._is_of_guide(name) else model_lr}

        return PyroOptim(partial(ScheduledAdam, factor=self.lr_factor), {"lr": lr} if lr == model_lr else rate)

    def _is_of_guide(self, name: str) -> bool:
        """Whether a parameter, by its normal name in Pyro's store, belongs to the guide of the last call."""
        guide = None if self._last_guide is None else self._last_guide()
        own = {id(p) for p in guide.parameters()} if guide is not None else set()
        stored = {normalize_param_name(key): p for key, p in pyro.get_param_store().named_parameters()}
        return id(stored.get(name)) in own

    # -- Pyro's ELBO interface ------------------------------------------------------------------------

    def _get_trace(self, model: Model, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.elbo._get_trace(model, guide, args, kwargs)

    def loss(self, model: Model, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Estimate of -ELBO; trains nothing."""
        self._ready(model, guide, args, kwargs)
        value: float = self.elbo.loss(model, guide, *args, **kwargs)
        return value

    def differentiable_loss(self, model: Model, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """-ELBO as a tensor to be differentiated, for ``torch.optim``; trains the adversary unless under no_grad.

        Raises:
            NonFiniteError: the loss is NaN or infinite.
        """
        guides = self._ready(model, guide, args, kwargs)
        if not torch.is_grad_enabled():
            value: Tensor = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
            return value
        with self._training(model, guides, args, kwargs) as annealed:
            if self._is_direct(guide):
                value = guide.negative_elbo(guide.target(), self.num_particles)
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

        Raises:
            NonFiniteError: too many non-finite losses or gradients in a row.
        """
        guides = self._ready(model, guide, args, kwargs)
        with self._training(model, guides, args, kwargs) as annealed:
            if self._is_direct(guide):
                value = guide.negative_elbo(guide.target(), self.num_particles)
                if value.requires_grad:
                    value.backward()
                loss = float(value.detach())
            else:
                loss = self.elbo.loss_and_grads(annealed, guide, *args, **kwargs)
        for g in guides:
            self._trainer(g).meet(g)
        gradients = with_gradient(guide)
        finite = math.isfinite(float(loss)) and self._bound.apply([p.grad for p in gradients if p.grad is not None])
        if not finite:
            self._count_skipped(guides)
        else:
            self._skipped_in_a_row = 0
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

    def _is_direct(self, guide: Any) -> bool:
        """Whether the outer loss is Trace_ELBO's of one guide and a fixed model, which needs no handlers.

        The target is the same joint density; evaluating it directly spares the traces and shares log p with
        the adversary's hint.
        """
        if type(self.elbo) is not Trace_ELBO or not self.vectorize_particles:
            return False
        if not isinstance(guide, AVBGuide) or guide.is_amortised:
            return False
        target = guide.target()
        return target is not None and not target.has_parameters and not target.enumerated

    def _count_skipped(self, guides: list[AVBGuide]) -> None:
        self._skipped_in_a_row += 1
        for g in guides:
            g.skipped_steps += 1
        if self._skipped_in_a_row > MOST_SKIPPED_IN_A_ROW:
            raise NonFiniteError(explain_non_finite(f"{self._skipped_in_a_row} steps in a row had to be skipped"))

    def skip(self, guide: AVBGuide) -> None:
        """Count a step that an error kept from being done, and drop what gradients it left.

        Raises:
            NonFiniteError: it is one too many in a row.
        """
        for p in with_gradient(guide):
            p.grad = None
        self._count_skipped([guide])

    def forgive(self) -> None:
        """Count skipped steps anew."""
        self._skipped_in_a_row = 0

    def begin_run(self) -> None:
        """Forget what an earlier run has left behind: skipped steps, lengths of gradients, lowered rates."""
        self._skipped_in_a_row, self._bound = 0, GradientBound()
        self.caution, self.before_adversarial = 1.0, None

    # -- a training call --------------------------------------------------------------------------------

    def _ready(self, model: Model, guide: Any, args: Any, kwargs: Any) -> list[AVBGuide]:
        guides = _avb_guides(guide)
        self.adapt(guide)
        self._last_guide = weakref.ref(poutine.unwrap(guide))
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
        if self.elbo.max_plate_nesting == math.inf and (
            self.elbo.vectorize_particles or isinstance(self.elbo, TraceEnum_ELBO)
        ):
            self._set_plate_nesting(model, guide, guides, args, kwargs)
        return guides

    def _set_plate_nesting(self, model: Model, guide: Any, guides: list[AVBGuide], args: Any, kwargs: Any) -> None:
        """Tell the wrapped ELBO how deep the plates are nested, which Pyro would find out by a run of its own."""
        target = guides[0].target(*args, **kwargs)
        if target is None:
            # Pyro draws from the caller's generators: unseeded, a resumed run would go another way.
            with seeded(0):
                self.elbo._guess_max_plate_nesting(model, guide, args, kwargs)
            return
        outer = self.elbo.vectorize_particles and self.elbo.num_particles > 1
        self.elbo.max_plate_nesting = target.max_plate_nesting + int(outer)

    @contextmanager
    def _training(self, model: Model, guides: list[AVBGuide], args: Any, kwargs: Any) -> Iterator[Any]:
        """Stage, adversary steps and annealing of one training call; a context that gives the annealed model."""
        self.beta = 1.0
        with ExitStack() as calls:
            for g in guides:
                if isinstance(g, AmortisedAVBGuide):
                    calls.enter_context(g.training_call(args, kwargs))
                    self._advance_amortised(g)
                else:
                    self.beta = self._advance(g)
            yield calls.enter_context(Annealed(model, guides, self.beta))

    def progress(self, guide: AVBGuide) -> float:
        """Share of the run that is done, in [0, 1]; 0 where no length is known."""
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

    def _advance(self, guide: AVBGuide) -> float:
        """Move the guide through its stages and train its adversary; returns beta."""
        if self.steps is not None and self.clock is None and int(guide.step_count) >= self.steps:
            self._factor = 0.0  # the run is over; the choice of stage stands
            return 1.0
        timed = self.steps is not None or self.clock is not None
        share = 0.0
        if guide.part("trunk").is_trainable and timed:
            share = self.schedule.trunk if self.clock is not None else self.schedule.trunk_share_of_steps
            stage = TrunkStage(
                guide, self.schedule, share, guide.target(), weighted=self._is_direct(guide), length=self.open_ended
            )
            share = stage.share
        progress = self._progress_of_training(guide)
        if guide.is_adversarial or progress >= share:
            done = (progress - share) / (1.0 - share) if timed else 0.0
            beta = self.schedule.beta(done) if timed and share == 0.0 else 1.0
            guide._beta = beta
            if not guide.is_adversarial:
                self._enter_adversarial(guide)
            self._follow_schedule(guide, done, timed)
            for _ in range(self.adversary_steps):
                self._trainer(guide).step(guide, self.adversary_batch, self.caution * self._adversary_factor)
        else:
            beta, self._factor = stage.advance(progress)
        guide.step_count += 1
        guide.comparison = None
        return beta

    def _advance_amortised(self, guide: AmortisedAVBGuide) -> None:
        """Train an amortised guide's adversary on the minibatch of this call; there are no stages."""
        if self.steps is not None and self.clock is None and int(guide.step_count) >= self.steps:
            self._factor = 0.0  # the run is over
            return
        timed = self.steps is not None or self.clock is not None
        done = self._progress_of_training(guide) if timed else 0.0
        guide.set_kl_weight(self.schedule.kl_weight(done) if timed else 1.0)
        trainer = self._trainer(guide)
        trainer.meet(guide)
        if not int(guide.adversarial_steps):
            trainer.begin(guide, self.adversary_batch, self.pretrain_steps)
        self._follow_schedule(guide, done, timed)
        for _ in range(self.adversary_steps):
            trainer.step(guide, self.adversary_batch, self.caution * self._adversary_factor)
        guide.step_count += 1

    def _follow_schedule(self, guide: AVBGuide, done: float, timed: bool) -> None:
        """Learning rates, average of the sampler's weights and polish at a point of the adversarial stage."""
        guide.adversarial_steps += 1
        count = int(guide.adversarial_steps)
        polishing = timed and done >= 1.0 - self.schedule.polish
        if polishing and not bool(guide.polishing):
            self._trainer(guide).load_average(guide)
            guide.polishing.fill_(True)
        elif not polishing and timed:
            self._trainer(guide).update_average(guide, min(self.schedule.average, (1.0 + count) / (10.0 + count)))
        warm = min(1.0, count / WARM_UP_STEPS)
        moved = done / (1.0 - self.schedule.polish) if timed else 0.0
        self._factor = 0.0 if polishing else warm * self.schedule.factor(moved)
        # The adversary keeps on learning while the sampler slows down, and comes to rest in the polish.
        floor = self.schedule.adversary_floor
        if polishing:
            self._adversary_factor = floor * (1.0 - done) / self.schedule.polish
        else:
            self._adversary_factor = warm * max(floor, self.schedule.factor(moved))

    def _moving(self, guides: list[AVBGuide]) -> bool:
        """Whether the outer step moves anything: not while the adversaries are polished."""
        return not all(bool(g.polishing) for g in guides)

    def _enter_adversarial(self, guide: AVBGuide) -> None:
        if self.before_adversarial is not None:
            self.before_adversarial(guide)
        for p in guide.part("trunk").parameters():
            p.grad = None
        guide.stage.fill_(ADVERSARIAL)
        self._trainer(guide).begin(guide, self.adversary_batch, self.pretrain_steps)

    def _trainer(self, guide: AVBGuide) -> AdversaryTrainer:
        if guide not in self._trainers:
            kind = AmortisedTrainer if guide.is_amortised else AdversaryTrainer
            trainer = kind(guide, self.adversary_lr)
            state = self._waiting.pop(guide._pyro_name, None)
            if state is None and len(self._waiting) == 1 and not self._trainers:
                # The only state for the only guide, whose name differs from process to process.
                _, state = self._waiting.popitem()
            if state is not None:
                trainer.load_state_dict(state)
            self._trainers[guide] = trainer
        return self._trainers[guide]

    def finish(self, guide: AVBGuide) -> None:
        """Keep the better of the trunk and the adversarial stage; called after the last of ``steps``."""
        if guide.is_amortised:
            return
        target = guide.target()
        if guide.is_adversarial and guide.part("trunk").is_trainable and target is not None:
            comparison = choose_stage(guide, target)
            guide.comparison = comparison
            if not comparison.keep_adversarial:
                guide.stage.fill_(TRUNK)

    # -- state --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Adversaries' optimisers and averages of the samplers' weights, by the guides' names; see ``LOSS``."""
        own = {"bound": self._bound.state_dict(), "skipped_in_a_row": self._skipped_in_a_row, "caution": self.caution}
        return {LOSS: own} | self._waiting | {g._pyro_name: t.state_dict() for g, t in self._trainers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; states of guides not yet met wait for them."""
        by_name = {guide._pyro_name: trainer for guide, trainer in self._trainers.items()}
        for name, value in state.items():
            if name == LOSS:
                self._bound.load_state_dict(value["bound"])
                self._skipped_in_a_row, self.caution = value["skipped_in_a_row"], value["caution"]
            elif name in by_name:
                by_name[name].load_state_dict(value)
            else:
                self._waiting[name] = copy.deepcopy(value)

    def forget(self, guide: AVBGuide) -> None:
        """Drop the state of a guide's adversary, as before its stage."""
        self._trainers.pop(guide, None)
        self._waiting.pop(guide._pyro_name, None)


def _avb_guides(guide: Any) -> list[AVBGuide]:
    unwrapped = poutine.unwrap(guide)
    guides = [m for m in unwrapped.modules() if isinstance(m, AVBGuide)] if isinstance(unwrapped, nn.Module) else []
    if not guides:
        raise TypeError(f"guide must be an AVBGuide or a module that holds one, found {type(unwrapped).__name__}")
    return guides
