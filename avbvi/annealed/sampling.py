"""Annealed importance sampling of Pyro models: log-evidence by datum, and bounds of it from both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from torch import Tensor

from ..arguments import device_of, flag, integer, keywords, seed_number
from ..bars import progress_bar
from ..checkpoints import StrPath
from ..devices import moved
from ..errors import ModelError
from ..interrupts import Interrupt
from ..precision import Precision
from ..rng import seeded
from ..targets import Model
from .chains import Annealing, BackwardAnnealing, ForwardAnnealing
from .densities import DatumDensity
from .evidence import AnnealedEvidence, Sandwich
from .noise import Keys
from .path import Path
from .precision import LowPrecisionDensity
from .problems import Frozen, Problem, Start, is_random
from .saved import Record, RecordFile, check_same_density
from .settings import Settings
from .temperatures import Temperatures


def annealed_importance_sampling(
    model: Model | DatumDensity,
    *args: Any,
    model_kwargs: dict[str, Any] | None = None,
    guide: Any = None,
    start: Start | None = None,
    temperatures: Temperatures | None = None,
    chains: int = 5,
    leapfrog_steps: int = 10,
    target_acceptance: float = 0.65,
    batch_size: int | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: StrPath | None = None,
    vectorize: bool = True,
    chains_at_once: int | None = None,
    precision: Precision | None = None,
    first_datum: int = 0,
) -> AnnealedEvidence:
    """Log-evidence log p(x_i) of each datum of a latent-variable model, by annealed importance sampling.

    Chains go from a start density s to the joint density along s^(1 - beta) p(x, z)^beta, by one HMC transition at each
    inverse temperature beta; all chains of all data run side by side. A model whose sites all lie in one
    plate has an evidence for each datum in it; any other model counts as one datum.

    Step sizes differ by temperature and datum. They follow the acceptance of pilot chains, which take part in nothing
    else (one by datum, or 32 in all, that stop at about 200 of the temperatures): given the pilots the transitions of
    the other chains are fixed, so that their weights are unbiased. The usual practice tunes them on the chains' own
    acceptance at the last temperatures.

    What is random in the model besides its latents (dropout, say) is frozen: one draw of it for all temperatures.

    Args:
        model: a Pyro model, a :class:`~avbvi.LogDensity`, or an object with ``batch``, ``dim`` and ``log_joint``
            (:class:`~avbvi.annealed.DatumDensity`).
        args: the model's arguments.
        model_kwargs: its keyword arguments.
        guide: start from Gaussians with the moments of this guide's (or posterior's) draws by datum, with 1.2 times
            its covariance. Far fewer temperatures give the same accuracy: on digits with 16 latents 50 of them had a
            standard error of .015, from the prior 1000 had .019.
        start: start from another density: a :class:`~avbvi.annealed.GaussianStart` for all data, or a function of the
            model's arguments that gives one. Without guide and start, the prior.
        temperatures: the schedule; ``SigmoidTemperatures(1000)`` by default.
        chains: how many by datum.
        leapfrog_steps: by transition; each evaluates the model and its gradient once.
        target_acceptance: mean acceptance probability that the step sizes aim at.
        batch_size: the most data at once, to bound the memory; the model's tensor arguments as long as the first are
            cut along their first dimension. From 32 on it is rounded down to a multiple of 32, and figures that start
            from a GaussianStart then are, to rounding, those of all data at once: noise is keyed by a datum's number,
            and data share step sizes in groups of 32. Draws of a prior or a guide differ from part to part.
        seed: of everything random; the caller's generators are left alone. ``None`` draws from these.
        device: where to run; tensors among the arguments are moved there.
        progress: show a bar.
        checkpoint: a file that is written every half minute, atomically. A run that finds it goes on from there, and
            gives bit for bit what it would have given (same machine and number of threads); a finished one is read.
        vectorize: ``False`` runs a model that does not broadcast over an outer plate draw by draw (slow).
        chains_at_once: the most chains of a part whose activations are in memory together, where ``batch_size`` does
            not bound them enough; it changes nothing but rounding. What stays beside is about 5 vectors of latents for
            each chain.
        precision: evaluate the joint density in lower precision while chains move, under ``torch.autocast`` or with
            products in TF32. The weights stay unbiased for the evidence of the model as it is, since each is multiplied
            by the exact density over the rounded one at the end; their variance grows by that of the rounding.
        first_datum: number of the first datum, by which its noise is keyed, if these data are part of more.

    On CUDA a temperature is captured as a graph and replayed, where the model allows it; if not, the reason is logged.

    Returns:
        Log-evidence of each datum (B,) in nats, with what tells how far it can be trusted.

    Raises:
        ModelError: the model can't be treated so, or a LogDensity without start and guide: it has no prior.
        TypeError, ValueError: an argument of the wrong kind or out of its range.
        NonFiniteError: a datum has density zero, infinity or NaN wherever its chains start.
        CheckpointError: the file is damaged or belongs to another run.

    Example:
        Data x = z + noise with z and noise standard normal: x is N(0, 2), and log p(1) = -1.516 nats.

        >>> import avbvi, torch
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> evidence = avbvi.annealed_importance_sampling(
        ...     model, torch.ones(1), temperatures=avbvi.LinearTemperatures(20), chains=200, seed=0, progress=False
        ... )
        >>> abs(evidence.mean.value + 1.516) < 0.02
        True

    Source: Neal (2001), Annealed importance sampling, Statistics and Computing 11; Wu, Burda, Salakhutdinov and Grosse
    (2017), On the quantitative analysis of decoder-based generative models, ICLR.
    """
    settings = Settings.checked(
        temperatures, chains, leapfrog_steps, target_acceptance, chains_at_once, precision, first_datum
    )
    problem = _problem(model, args, model_kwargs, start, guide, batch_size, device, vectorize)
    run = _Run(problem, settings, checkpoint, both=False)
    run.go(seed_number(seed), device_of(device), progress=flag("progress", progress))
    return run.evidence()


def bidirectional_sandwich(
    model: Model | DatumDensity,
    *args: Any,
    model_kwargs: dict[str, Any] | None = None,
    guide: Any = None,
    start: Start | None = None,
    temperatures: Temperatures | None = None,
    chains: int = 5,
    leapfrog_steps: int = 10,
    target_acceptance: float = 0.65,
    batch_size: int | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: StrPath | None = None,
    vectorize: bool = True,
    chains_at_once: int | None = None,
    precision: Precision | None = None,
    first_datum: int = 0,
) -> Sandwich:
    """How far off annealed importance sampling is, on data simulated from the model: bounds from below and above.

    Latents and data are drawn from the model, with the shapes that it has for these arguments. The latents are an exact
    posterior draw given the data, from which chains run backward: the mean of exp(-log weight) is unbiased for 1 /
    evidence, hence an upper bound in expectation. Forward chains give the lower bound, as in
    :func:`annealed_importance_sampling`; the arguments are the same. A small gap says that schedule and chains
    are enough, for data such as the model itself makes.

    A guide, or a start that is a function, is asked about the simulated data, which take the place of the model's first
    tensor argument.

    Args:
        model: a Pyro model, or an object with ``batch``, ``dim`` and ``log_joint``.
        args: the model's arguments, which give the shapes of the data.
        model_kwargs: its keyword arguments.
        guide: start from Gaussians with the moments of this guide's draws by datum.
        start: start from another density; without guide and start, the prior.
        temperatures: the schedule; ``SigmoidTemperatures(1000)`` by default.
        chains: how many by datum, in each direction.
        leapfrog_steps: by transition.
        target_acceptance: mean acceptance probability that the step sizes aim at.
        batch_size: the most data at once.
        seed: of everything random; ``None`` draws from the caller's generators.
        device: where to run.
        progress: show a bar.
        checkpoint: a file to go on from.
        vectorize: ``False`` runs a model that does not broadcast over an outer plate draw by draw (slow).
        chains_at_once: the most chains whose activations are in memory together.
        precision: evaluate the joint density in lower precision while chains move.
        first_datum: number of the first datum, by which its noise is keyed.

    Returns:
        Lower and upper bounds of each datum's log-evidence (B,) in nats.

    Raises:
        ModelError: as :func:`annealed_importance_sampling`; or a model that can't be simulated, or is random besides
            its latents; or simulated data that can't be put into the model's arguments, where a start needs them.
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of its range.

    Source: Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo;
    Wu et al. (2017), section 3.3.
    """
    settings = Settings.checked(
        temperatures, chains, leapfrog_steps, target_acceptance, chains_at_once, precision, first_datum
    )
    problem = _problem(model, args, model_kwargs, start, guide, batch_size, device, vectorize)
    run = _Run(problem, settings, checkpoint, both=True)
    run.go(seed_number(seed), device_of(device), progress=flag("progress", progress))
    return run.sandwich()


def _problem(
    model: Model | DatumDensity,
    args: tuple[Any, ...],
    model_kwargs: dict[str, Any] | None,
    start: Start | None,
    guide: Any,
    batch_size: int | None,
    device: torch.device | str | None,
    vectorize: bool,
) -> Problem:
    kwargs = keywords("model_kwargs", model_kwargs)
    where = device_of(device)
    if where is not None:
        args = tuple(moved(a, where) for a in args)
        kwargs = {k: moved(v, where) for k, v in kwargs.items()}
    return Problem(
        model, args, kwargs, start=start, guide=guide,
        batch_size=None if batch_size is None else integer("batch_size", batch_size, 1),
        vectorize=flag("vectorize", vectorize),
    )  # fmt: skip


class _Run:
    """Annealed chains of all parts of a problem, one part after the other, and their record."""

    record: Record

    def __init__(self, problem: Problem, settings: Settings, checkpoint: StrPath | None, *, both: bool) -> None:
        self.problem, self.settings, self.both = problem, settings, both
        self.file = RecordFile(checkpoint)
        self.betas = settings.temperatures.betas()
        self.forward: ForwardAnnealing | None = None
        self.backward: BackwardAnnealing | None = None

    def go(self, seed: int | None, device: torch.device | None, *, progress: bool) -> None:
        """Run, or go on, to the end.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the record is written.
        """
        parts, stages = len(self.problem.bounds), 2 if self.both else 1
        plain = {
            "kind": "bidirectional" if self.both else "forward",
            **self.settings.plain(),
            "batch_size": [list(b) for b in self.problem.bounds],
        }
        record = self.file.load(plain, seed)
        if record is None:
            seed = int(torch.randint(2**31, ())) if seed is None else seed
            record = Record(plain, seed)
        self.record = record
        seeds = torch.randint(2**31, (parts, 2), generator=torch.Generator().manual_seed(record.seed)).tolist()
        count = self.settings.temperatures.count
        where: AbstractContextManager[Any] = nullcontext() if device is None else torch.device(device)
        with (
            Interrupt() as interrupt,
            where,
            # Without validation: a trajectory that wanders off to NaN is rejected, not an error.
            pyro.validation_enabled(False),
            progress_bar(progress, total=parts * stages * count, unit="temperature") as bar,
        ):
            if record.done:
                self._check_done(len(record.done) - 1, seeds[len(record.done) - 1])
                bar.update(len(record.done) * stages * count)
            for part in range(len(record.done), parts):
                self._begin(part, seeds[part])
                bar.update(self._steps_done)
                while (chains := self._under_way()) is not None:
                    chains.advance()
                    bar.update(1)
                    if interrupt.asked or self.file.due:
                        record.current = self._current()
                        self.file.save(record)
                    if interrupt.asked:
                        raise KeyboardInterrupt
                record.done.append(self._result())
                record.current = None
                if self.file.path is not None:
                    self.file.save(record)
            record.seconds = self.file.seconds

    def _set_up(self, part: int, seeds: Sequence[int]) -> tuple[ForwardAnnealing, Tensor | None]:
        """Chains of a part at their start, and a posterior draw if they shall go back."""
        problem, posterior_draw = self.problem, None
        with seeded(seeds[0]):
            if self.both:
                posterior_draw, density, arguments = problem.simulated(part)
            else:
                density, arguments = problem.density(part), problem.arguments(part)
            start = problem.start_of(part, density, arguments)
            like = start.sample(1)
            if like.shape[1:] != (density.batch, density.dim):
                raise ValueError(
                    f"start holds {like.shape[1]} data with {like.shape[2]} coordinates each, but the model has "
                    f"{density.batch} data with {density.dim} unconstrained coordinates"
                )
            recorded = problem.recordable
            if is_random(density, like):
                if self.both:
                    raise ModelError(
                        "the model is random besides its latents (dropout?), which has no place in a sandwich; put its "
                        "modules into evaluation mode"
                    )
                density = Frozen(density, seeds[1])
                start = problem.start_of(part, density, arguments)
                recorded = False
            settings = self.settings
            full = settings.precision == Precision()
            seen = density if full else LowPrecisionDensity(density, settings.precision)
            path = Path(
                seen, start, exact=None if full else density, chains_at_once=settings.chains_at_once,
                recorded=recorded,
            )  # fmt: skip
            forward = ForwardAnnealing(
                path, self.betas, chains=settings.chains, leapfrog_steps=settings.leapfrog_steps,
                target_acceptance=settings.target_acceptance, keys=self._keys(part),
            )  # fmt: skip
        return forward, posterior_draw

    def _keys(self, part: int) -> Keys:
        bounds, first = self.problem.bounds, self.settings.first_datum
        total = None if len(bounds) == 1 else bounds[-1][1]
        return Keys(self.record.seed, first + bounds[part][0], total)

    def _begin(self, part: int, seeds: Sequence[int]) -> None:
        self.forward, draw = self._set_up(part, seeds)
        if draw is not None:
            self.backward_from: Callable[[], BackwardAnnealing] = self._backward(self.forward, draw)
        self.backward = None
        current = self.record.current
        if current is None:
            return
        path = self.forward.path
        density = path.density if current["forward"]["done"] < self.forward.count else path.target
        _, log_joint = current["forward"]["state"][0], current["forward"]["state"][2]
        check_same_density(density, current["forward"]["state"][0].to(self.forward.state.z), log_joint, self.file.path)
        self.forward.restore(current["forward"])
        if current["backward"] is not None:
            self.backward = self.backward_from()
            self.backward.restore(current["backward"])

    @staticmethod
    def _backward(forward: ForwardAnnealing, draw: Tensor) -> Callable[[], BackwardAnnealing]:
        return lambda: BackwardAnnealing(forward, draw)

    def _under_way(self) -> Annealing | None:
        assert self.forward is not None
        if not self.forward.finished:
            return self.forward
        if not self.both:
            return None
        if self.backward is None:
            self.backward = self.backward_from()
        return None if self.backward.finished else self.backward

    @property
    def _steps_done(self) -> int:
        assert self.forward is not None
        return self.forward.done + (0 if self.backward is None else self.backward.done)

    def _current(self) -> dict[str, Any]:
        assert self.forward is not None
        return {"forward": self.forward.saved(), "backward": None if self.backward is None else self.backward.saved()}

    def _result(self) -> dict[str, Any]:
        assert self.forward is not None
        result = {
            "log_weights": self.forward.log_weights.cpu(),
            "draws": self.forward.state.z.cpu(),
            "log_joint": self.forward.state.log_joint.cpu(),
            "acceptance": self.forward.acceptance.cpu(),
        }
        if self.backward is not None:
            result["backward"] = self.backward.log_weights.cpu()
        return result

    def _check_done(self, part: int, seeds: Sequence[int]) -> None:
        forward, _ = self._set_up(part, seeds)
        saved = self.record.done[part]
        check_same_density(
            forward.path.target, saved["draws"].to(forward.state.z), saved["log_joint"], self.file.path
        )  # fmt: skip

    def _joined(self, name: str) -> Tensor:
        return torch.cat([done[name] for done in self.record.done], 1)

    def evidence(self) -> AnnealedEvidence:
        sizes = torch.tensor([done["log_weights"].shape[1] for done in self.record.done], dtype=torch.float64)
        acceptance = torch.stack([done["acceptance"] for done in self.record.done])
        return AnnealedEvidence(
            self._joined("log_weights"), self._joined("draws"), (sizes / sizes.sum()) @ acceptance,
            self.settings.temperatures, self.settings.leapfrog_steps, self.record.seconds,
        )  # fmt: skip

    def sandwich(self) -> Sandwich:
        return Sandwich(self.evidence(), self._joined("backward"), self.record.seconds)
