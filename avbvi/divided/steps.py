"""One training call of several processes: each works on its part, and they average losses and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from .. import distributed
from ..amortised.guide import AmortisedAVBGuide
from ..errors import ModelError
from ..gradients import with_gradient
from ..guides import AVBGuide
from ..model_state import modules_of
from ..starts import LaplaceModes
from ..targets import Model
from .division import (
    average_,
    data_divided,
    data_division,
    draws_divided,
    equal_parts,
    fail_with_others,
    is_singular,
)

if TYPE_CHECKING:
    from ..elbo import AdversarialELBO


@contextmanager
def divided(
    training: AbstractContextManager[Any], elbo: AdversarialELBO, guides: Sequence[AVBGuide], args: Any, kwargs: Any
) -> Iterator[tuple[Any, int]]:
    """One training call, in which an amortised guide has this process's part of the minibatch, another of the draws.

    Args:
        training: the adversaries' part of the call, a context that gives the annealed model.
        elbo: the loss.
        guides: the guides.
        args, kwargs: the model's arguments: of an amortised guide this process's part of the minibatch.

    Yields:
        The annealed model and the number of draws of this process.

    Raises:
        ValueError: the draws can't be divided, or the model chooses its minibatch by itself.
        ModelError: it scales its data's terms by other means than the plate.
    """
    if distributed.world_size() == 1:
        with training as annealed:
            yield annealed, elbo.num_particles
        return
    with _minibatch(guides, args, kwargs), training as annealed, _own_particles(elbo.elbo, elbo.num_particles) as n:
        yield annealed, n


def averaged(make: Callable[[], float], guide: Any) -> float:
    """The mean of the processes' losses; the gradients that guide and model have become the mean ones.

    Args:
        make: gives this process's loss and leaves its gradients in ``.grad``.
        guide: the guide.

    Raises:
        LinAlgError: a matrix of the model is singular in some process.
        OtherFailed: ``make`` has failed in another process, for another reason.
        RuntimeError: the processes have gradients of different parameters.
    """
    if distributed.world_size() == 1:
        return make()
    try:
        loss = float(make())
    except Exception as error:
        _exchange(SINGULAR if is_singular(error) else FAILED, 0)
        raise
    own = [p.grad for p in with_gradient(guide) if p.grad is not None]
    _exchange(DONE, sum(g.numel() for g in own))
    like = own[0] if own else torch.zeros((), device=distributed.device())
    value = torch.as_tensor(loss, dtype=like.dtype, device=like.device).reshape(1)
    average_([*own, value])
    return float(value)


#: What a process tells the others of its loss; the largest counts.
DONE, SINGULAR, FAILED = range(3)


def _exchange(status: int, numbers: int) -> None:
    """Tell the others how the loss went, and how many numbers the gradients have; fail where somebody has."""
    worst, most, fewest = distributed.largest([float(status), float(numbers), -float(numbers)])
    if worst and not status:
        fail_with_others(singular=worst == SINGULAR)
    if not worst and most != -fewest:
        raise RuntimeError(
            f"one process has gradients of {-fewest:.0f} numbers, another of {most:.0f}: what a model or guide does "
            "must not depend on the draws or data of one process"
        )


@contextmanager
def _own_particles(elbo: ELBO, n: int) -> Iterator[int]:
    """Divide the draws of a Pyro ELBO; gives the number of this process's."""
    with draws_divided("num_particles", n, singly=not elbo.vectorize_particles) as own:
        elbo.num_particles = own
        try:
            yield own
        finally:
            elbo.num_particles = n


# -- minibatches ------------------------------------------------------------------------------------------


@contextmanager
def _minibatch(guides: Sequence[AVBGuide], args: Any, kwargs: Any) -> Iterator[None]:
    """Tell everybody what part of the minibatch this process has: as large as the others', unless that is known."""
    amortised = [g for g in guides if isinstance(g, AmortisedAVBGuide)]
    if not amortised:
        yield
        return
    reader, like = amortised[0].reader, amortised[0].anchor
    assert reader is not None
    frame = reader.frame(args, kwargs)
    if reader.subsamples(args, kwargs, like):
        raise ValueError(
            f"plate {frame.name!r} takes {frame.size} data out of those that the model is given, and a minibatch that "
            "the model chooses by itself can't be divided among processes; give avbvi.fit a DataLoader, and the model "
            f"pyro.plate({frame.name!r}, N, subsample_size=len(x))"
        )
    division = data_division() or equal_parts(frame.size)
    # A plate of N data has the scale N / B for a part B of a minibatch, and the mean over parts is right. One that is
    # no larger than its minibatch has none: the loss is then the sum over the whole minibatch.
    sums = frame.size == frame.full_size
    if sums and reader.factor(args, kwargs) != 1.0:
        raise ModelError(
            f"the model scales what is inside plate {frame.name!r} by {reader.factor(args, kwargs):g}, and what it "
            "would be for the whole minibatch, of which each process sees a part, can't be told; declare the number of "
            f"all data instead: pyro.plate({frame.name!r}, N, subsample_size=len(x))"
        )
    scaled = ScaledPlate(frame.name, 1.0 / division.share) if sums else nullcontext()
    with data_divided(division), scaled:
        yield


class ScaledPlate(Messenger):
    """Multiplies the log-densities of all sites inside a plate, the model's and the guide's.

    Args:
        plate: its name.
        factor: positive.
    """

    def __init__(self, plate: str, factor: float) -> None:
        super().__init__()
        self.plate: str = plate
        self.factor: float = factor

    def _pyro_sample(self, msg: Any) -> None:
        if any(frame.name == self.plate for frame in msg["cond_indep_stack"]):
            msg["scale"] = self.factor * msg["scale"]


# -- the start ---------------------------------------------------------------------------------------------


def copy_start(guide: AVBGuide, model: Model) -> None:
    """Give guide, model and random generators the state that they have in the first process.

    Raises:
        RuntimeError: the processes' models or guides have other parameters.
    """
    if distributed.world_size() == 1:
        return
    copy_tensors(guide, model)
    modes, guide.start_notes, guide.start_suspect = distributed.agreed(
        (_moved(guide.modes, "cpu"), guide.start_notes, guide.start_suspect)
    )
    guide.modes = _moved(modes, guide.anchor.device)
    distributed.same_generators()


def copy_tensors(guide: AVBGuide, model: Model) -> None:
    """Give all that guide and model hold the values that they have in the first process.

    Raises:
        RuntimeError: as :func:`copy_start`.
    """
    tensors = _tensors(guide, model)
    shapes = [tuple(t.shape) for t in tensors]
    if any(other != shapes for other in distributed.everyones(shapes)):
        raise RuntimeError(
            "the processes' models or guides have other parameters; build them by the same code, and make no more "
            "guides or modules in one process than in another"
        )
    distributed.copy_from_first_(tensors)


def _tensors(guide: AVBGuide, model: Model) -> list[Tensor]:
    """All that a run starts from: parameters and buffers of guide and model."""
    modules: list[nn.Module] = [guide, *modules_of(model).values()]
    held = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    stored = [p for _, p in pyro.get_param_store().named_parameters()]
    return list({id(t): t for t in (*held, *stored)}.values())


def _moved(modes: LaplaceModes | None, device: object) -> LaplaceModes | None:
    return None if modes is None else LaplaceModes(**{k: t.to(device) for k, t in modes._asdict().items()})
