"""Short fits in double precision that one process and two have to do alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import avbvi
from avbvi import (
    AdversarialELBO,
    AVBGuide,
    ConditionalSampler,
    InnerProductAdversary,
    ResidualAdversary,
    Schedule,
    placing,
)
from avbvi import elbo as elbo_module
from avbvi import training as training_module
from avbvi.amortised.runs import AmortisedRun
from avbvi.diagnostics import Verdict, choose_stage
from models import eight_schools

STEPS = 100
N, WIDTH, LATENT = 40, 6, 2


@dataclass
class Outcome:
    """What a fit has come to: losses of its steps, state of guide and model, the verdict, and how steps were taken."""

    elbos: Tensor
    state: dict[str, Tensor]
    skipped: int
    verdict: Any
    execution: str


@contextmanager
def briefly(traced: bool = False) -> Iterator[None]:
    """Double precision, each step's loss kept, short searches and no verdict; a model is run anew unless ``traced``."""
    torch.set_default_dtype(torch.float64)
    # Modules that the caller makes differ between processes that are not seeded: the first one's are to count.
    pyro.set_rng_seed(7 + (torch.distributed.get_rank() if torch.distributed.is_initialized() else 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module, "RECORD_EVERY", 1)
        patch.setattr(elbo_module, "choose_stage", partial(choose_stage, n=500))
        patch.setattr(placing, "FULL_EFFORT", placing.SMALL_EFFORT)
        if not traced:
            patch.setattr(training_module.Trainer, "_target_traced", lambda run: nullcontext())
        for run in (training_module.Trainer, AmortisedRun):
            patch.setattr(run, "_verdict", lambda run: Verdict("ok", [], {}))
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def outcome(posterior: Any, *modules: nn.Module) -> Outcome:
    state = {f"{i}.{k}": v.detach().clone() for i, m in enumerate(modules) for k, v in m.state_dict().items()}
    run = posterior.run
    return Outcome(torch.tensor(run.history["elbo"]), state, run.skipped_steps, posterior.verdict, run.execution)


# -- a variational autoencoder ---------------------------------------------------------------------------


class VAE(nn.Module):
    """A small decoder of ``WIDTH`` pixels, by default in a plate of all N data."""

    def __init__(self, declared: bool = True, scale: float = 1.0, normalised: bool = False) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, WIDTH))
        self.moments = nn.BatchNorm1d(WIDTH, affine=False) if normalised else None
        self.declared, self.scale = declared, scale

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self)
        if self.moments is not None and self.training:
            self.moments(x)  # running moments of the data, which nothing else reads
        plate = pyro.plate("data", N, subsample_size=len(x)) if self.declared else pyro.plate("data", len(x))
        with pyro.poutine.scale(scale=self.scale), plate:
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z), validate_args=False).to_event(1), obs=x)


def pixels(n: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    kinds = torch.rand(3, WIDTH, generator=generator)
    return torch.bernoulli(kinds[torch.arange(n) % 3], generator=generator).double()


def vae(
    declared: bool = True,
    batch_size: int = 8,
    *,
    contrast: Any = None,
    sampled: bool = False,
    tensors: bool = False,
    seed: int | None = 3,
    steps: int = STEPS,
    checkpoint: Any = None,
    scale: float = 1.0,
    normalised: bool = False,
    minutes: float | None = None,
) -> Outcome:
    """Fit a VAE by AVB with a learned decoder; ``sampled`` gives each process a DistributedSampler's part."""
    with briefly():
        model = VAE(declared, scale, normalised)
        data = TensorDataset(pixels())
        loader: DataLoader[Any]
        if tensors:
            loader = avbvi.TensorLoader(pixels(), batch_size=batch_size, shuffle=True)
        elif sampled and torch.distributed.is_initialized():
            own = DistributedSampler(data, shuffle=False)
            loader = DataLoader(data, batch_size=batch_size // 2, sampler=own)
        elif sampled:
            # What two of those samplers give together, batch by batch.
            order = torch.arange(N).reshape(-1, batch_size // 2, 2).transpose(1, 2).flatten().tolist()
            loader = DataLoader(data, batch_size=batch_size, sampler=order)
        else:
            loader = DataLoader(data, batch_size=batch_size, shuffle=True)
        guide = AVBGuide(
            model.model,
            sampler=ConditionalSampler(WIDTH, hidden=(8,), context_hidden=(8,)),
            adversary=InnerProductAdversary(hidden=(16,)),
            contrast=contrast,
        )
        elbo = AdversarialELBO(pretrain_steps=3)
        fitted = avbvi.fit(
            model.model,
            loader,
            guide=guide,
            elbo=elbo,
            seed=seed,
            steps=None if minutes else steps,
            minutes=minutes,
            checkpoint=checkpoint,
            progress=False,
        )
        return outcome(fitted, guide, model)


# -- Eight Schools ----------------------------------------------------------------------------------------


def schools(
    make_trunk: Callable[[], Any] | None = None,
    *,
    elbo: Callable[[], AdversarialELBO] | None = None,
    steps: int = STEPS,
    seed: int = 3,
    contrast: Any = None,
    model: Any = eight_schools.model,
    args: tuple[Any, ...] | None = None,
    hinted: bool = True,
    traced: bool = False,
) -> Outcome:
    """Fit Eight Schools of the paper: with a trainable trunk both stages."""
    with briefly(traced):
        guide = AVBGuide(
            model,
            trunk=None if make_trunk is None else make_trunk(),
            contrast=contrast,
            adversary=ResidualAdversary(target_hint=hinted),
        )
        data = (eight_schools.Y.double(), eight_schools.SIGMA.double()) if args is None else args
        schedule = Schedule(trunk=0.5, settle=0.0)
        loss = elbo() if elbo else AdversarialELBO(num_particles=48, pretrain_steps=3, schedule=schedule)
        fitted = avbvi.fit(model, *data, guide=guide, elbo=loss, seed=seed, steps=steps, progress=False)
        return outcome(fitted, guide)
