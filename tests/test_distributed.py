"""Two processes do what one does: the same losses and parameters to rounding, the same decisions on both."""

import math
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import avbvi
from avbvi import (
    AdversarialELBO,
    AVBGuide,
    ConditionalSampler,
    GaussianContrast,
    InnerProductAdversary,
    Schedule,
    distributed,
)
from avbvi.divided import division
from tests.divided_fits import STEPS, VAE, WIDTH, N, Outcome, briefly, pixels, schools, vae
from tests.processes import PATIENCE, SIZE, Processes, Raised

#: Rounding of sums that are taken in another order, after 100 steps in double precision.
ROUNDING = 1e-9


def answers(found: list[Any]) -> list[Any]:
    for answer in found:
        if isinstance(answer, Raised):
            raise answer
    return found


def check_same_on_both(found: list[Outcome]) -> None:
    first, second = answers(found)
    assert torch.equal(first.elbos.nan_to_num(7.0), second.elbos.nan_to_num(7.0))
    assert first.state.keys() == second.state.keys()
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())


def check_same(one: Outcome, found: list[Outcome], steps: int = STEPS) -> None:
    """The bound asked for is 1e-5 over 100 steps."""
    check_same_on_both(found)
    assert len(one.elbos) == steps
    torch.testing.assert_close(found[0].elbos, one.elbos, rtol=ROUNDING, atol=0.0)
    for name, value in one.state.items():
        torch.testing.assert_close(found[0].state[name], value, rtol=ROUNDING, atol=ROUNDING)


def same(processes: Processes, fit: Callable[..., Outcome], *args: Any, **options: Any) -> None:
    work = partial(fit, *args, **options)
    check_same(work(), processes(work), options.get("steps", STEPS))


# -- the same as one process -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"declared": False, "steps": 30},  # the plate is no larger than the minibatch: the loss is a sum
        {"batch_size": 7, "steps": 30},  # and a last one of 5: parts of different sizes
        {"sampled": True, "steps": 30},
        {"tensors": True, "steps": 30},
        {"normalised": True, "steps": 20},
    ],
    ids=["divided", "sum", "unequal", "sampler", "tensors", "moments"],
)
def test_vae(options: dict[str, Any], processes: Processes) -> None:
    if options.get("normalised"):
        # Moments are those of the parts, whose mean is not that of the whole; all else is the same.
        one, found = vae(**options), processes(partial(vae, **options))
        check_same_on_both(found)
        torch.testing.assert_close(found[0].elbos, one.elbos, rtol=ROUNDING, atol=0.0)
        return
    same(processes, vae, **options)


def test_eight_schools_adversarial(processes: Processes) -> None:
    same(processes, schools, avbvi.AffineTrunk, traced=True)


def test_eight_schools_trunk_and_adversarial(processes: Processes) -> None:
    same(processes, schools, partial(avbvi.MixtureTrunk, 8))


def traced() -> AdversarialELBO:
    inner = TraceGraph_ELBO(num_particles=7, vectorize_particles=True)  # parts of 3 and 4 draws
    return AdversarialELBO(inner, adversary_batch=9, pretrain_steps=3, schedule=Schedule(trunk=0.5, settle=0.0))


def test_any_pyro_elbo(processes: Processes) -> None:
    same(processes, schools, avbvi.FlowTrunk, elbo=traced, contrast=GaussianContrast(full=True), steps=16)


def test_draws_one_by_one(processes: Processes) -> None:
    # Other noise than in one process, but the same law; nothing is drawn twice.
    check_same_on_both(processes(partial(schools, avbvi.AffineTrunk, elbo=one_by_one, steps=3)))


def one_by_one() -> AdversarialELBO:
    return AdversarialELBO(num_particles=4, vectorize_particles=False, adversary_batch=8, pretrain_steps=1)


def test_prior_contrast(processes: Processes) -> None:
    # The prior's draws come from a stream of each process's own; data and noise are the same.
    check_same_on_both(processes(partial(vae, contrast=avbvi.PriorContrast(), steps=20)))


def test_unseeded_processes_agree_on_a_seed(processes: Processes) -> None:
    check_same_on_both(processes(partial(vae, seed=None, steps=5)))


def test_by_the_clock(processes: Processes) -> None:
    found = answers(processes(partial(vae, minutes=0.01)))
    check_same_on_both(found)
    assert len(found[0].elbos) > 2
    assert "exchange gradients" in found[0].execution


# -- what is divided -------------------------------------------------------------------------------------


def numbered(shape: torch.Size) -> Tensor:
    return torch.arange(float(shape[0]))[:, None].expand(*shape, 3)


def rows_of_draws(whole: int) -> dict[str, Any]:
    with distributed.together(), division.draws_divided("n", whole) as n:
        noise = division.own_draws(
            lambda shape: torch.arange(float(shape[0]))[:, None].expand(*shape, 3), torch.Size((n,))
        )
        part = division.own_part(torch.arange(2.0 * whole))
        mean, constant = noise.mean(0), torch.ones(2)
        division.average_([mean, constant])
        return {
            "noise": noise,
            "all": division.everyones_draws(noise),
            "part": part,
            "mean": mean,
            "constant": constant,
            "share": division.share(),
        }


@pytest.mark.parametrize("whole", [8, 7, 2])
def test_rows_of_draws_make_up_the_whole(whole: int, processes: Processes) -> None:
    found = answers(processes(rows_of_draws, whole))
    every = torch.arange(float(whole))[:, None].expand(whole, 3)
    assert torch.equal(torch.cat([f["noise"] for f in found]), every)
    assert torch.equal(torch.cat([f["part"] for f in found]), torch.arange(2.0 * whole))
    assert sum(f["share"] for f in found) == pytest.approx(1.0)
    for f in found:
        assert torch.equal(f["all"], every)
        torch.testing.assert_close(f["mean"], every.mean(0))
        torch.testing.assert_close(f["constant"], torch.ones(2))


def noise_of_data(counts: tuple[int, ...]) -> Tensor:
    with distributed.together():
        part = division.Division(counts, distributed.rank())
        with division.data_divided(part):
            torch.manual_seed(0)
            return division.own_data(lambda shape: torch.randn(*shape, 2), torch.Size((3, part.size)))


def test_data_see_their_part_of_the_noise(processes: Processes) -> None:
    found = answers(processes(noise_of_data, (4, 3)))
    torch.manual_seed(0)
    assert torch.equal(torch.cat(found, 1), torch.randn(3, 7, 2))


def nothing_shared() -> dict[str, Any]:
    value = torch.tensor([float(torch.distributed.get_rank())])
    distributed.sum_([value])
    with distributed.together(), distributed.alone():
        inner = distributed.world_size()
        drawn = int(torch.randint(1000, ()))
        seeds = distributed.same_seed(None), drawn
    with distributed.alone(), briefly():
        lone = quick_lone_fit()
    return {"value": float(value), "size": distributed.world_size(), "inner": inner, "seeds": seeds, "lone": lone}


def quick_lone_fit() -> float:
    def log_prob(z: Tensor) -> Tensor:
        return -0.5 * (z - torch.distributed.get_rank()).square().sum(-1)

    elbo = AdversarialELBO(num_particles=16, pretrain_steps=1)
    target = avbvi.LogDensity(log_prob, (1,))
    fitted = avbvi.fit(target, guide=AVBGuide(target, trunk=avbvi.AffineTrunk()), elbo=elbo, steps=2, progress=False)
    return float(fitted.sample(2000)["z"].mean())


def test_nothing_is_shared_outside_of_together(processes: Processes) -> None:
    first, second = answers(processes(nothing_shared))
    assert (first["value"], second["value"]) == (0.0, 1.0)
    assert first["size"] == second["size"] == first["inner"] == 1
    assert first["seeds"][0] is None
    assert first["seeds"] != second["seeds"]
    # Each process's own posterior, N(rank, 1), of two steps from its Laplace approximation.
    assert abs(first["lone"]) < 0.3
    assert abs(second["lone"] - 1.0) < 0.3


# -- decisions -------------------------------------------------------------------------------------------


class Broken:
    """Eight Schools whose log-density fails in one process, once each at these evaluations with a gradient."""

    def __init__(self, rank: int, at: tuple[int, ...], failure: Any) -> None:
        self.rank, self.at, self.failure, self.count = rank, at, failure, 0

    def __call__(self, z: Tensor) -> Tensor:
        value = -0.5 * z.square().sum(-1)
        if not (torch.distributed.is_initialized() and torch.is_grad_enabled() and z.requires_grad and len(z) == 24):
            return value
        self.count += 1
        if torch.distributed.get_rank() == self.rank and self.count in self.at:
            if self.failure is not None:
                raise self.failure
            return value * math.nan
        return value


def broken(failure: Exception | None, outer: bool, elbo: Any, at: Any = (4, 5, 9), steps: int = 20) -> Outcome:
    """Fit a density that fails in the second process at some of its outer steps, or (else) at an adversary step."""
    count = 0

    def model() -> None:
        nonlocal count
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        value = 0.0 * z.sum(-1)
        # Outer steps have 21 of 42 draws in each process; two adversary steps at once each have 11 of 22 and as many of
        # the contrast.
        if z.numel() == 3 * (21 if outer else 44):
            count += 1
            if torch.distributed.get_rank() == 1 and count in at:
                if failure is not None:
                    raise failure
                value = value + math.nan
        pyro.factor("value", value)

    inner = elbo(num_particles=42, vectorize_particles=True, max_plate_nesting=1)
    made = partial(AdversarialELBO, inner, adversary_batch=22, pretrain_steps=1)
    return schools(avbvi.AffineTrunk, model=model, args=(), steps=steps, elbo=made, hinted=elbo is Trace_ELBO)


@pytest.mark.parametrize("failure", [None, torch.linalg.LinAlgError("a matrix is singular")], ids=["nan", "singular"])
def test_a_step_that_fails_in_one_process_is_skipped_in_both(failure: Any, processes: Processes) -> None:
    elbo = Trace_ELBO if failure is None else TraceGraph_ELBO
    found = answers(processes(broken, failure, True, elbo))
    check_same_on_both(found)
    assert [f.skipped for f in found] == [3, 3]
    skipped = torch.isnan(found[0].elbos)
    assert skipped.nonzero().flatten().tolist() == [3, 4, 8]


def test_a_run_that_breaks_down_in_one_process_is_rolled_back_in_both(processes: Processes) -> None:
    found = answers(processes(broken, None, True, Trace_ELBO, range(11, 46), 60))
    check_same_on_both(found)
    for f in found:
        assert f.verdict.figures["rollbacks"] == 1.0
        assert "35 of 50 steps had to be skipped" in str(f.verdict)
        assert torch.isfinite(f.elbos[-10:]).all()


def test_a_trunk_is_chosen_alike(processes: Processes) -> None:
    same(processes, schools, steps=24)


@pytest.mark.parametrize("outer", [True, False], ids=["outer", "adversary"])
def test_an_error_in_one_process_ends_both(outer: bool, processes: Processes) -> None:
    started = time.monotonic()
    first, second = processes(broken, ValueError("out of luck"), outer, Trace_ELBO)
    assert first.kind == "OtherFailed"
    assert "out of luck" in second.message
    assert time.monotonic() - started < PATIENCE / 2


def interrupted(checkpoint: str, at: int) -> Outcome:
    """Ctrl-C reaches the second process alone, after so many steps."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = 0
    original = AdversarialELBO.loss_and_grads

    def counted(*args: Any, **kwargs: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == at and torch.distributed.get_rank() == 1:
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdversarialELBO, "loss_and_grads", counted)
        try:
            return vae(steps=40, checkpoint=checkpoint)
        finally:
            signal.signal(signal.SIGINT, previous)


def test_checkpoints_are_resumed_by_two_and_by_one(processes: Processes, tmp_path: Path) -> None:
    file, copy = str(tmp_path / "run.pt"), str(tmp_path / "copy.pt")
    stopped = answers(processes(interrupted, file, 17))
    check_same_on_both(stopped)
    assert len(stopped[0].elbos) == 17
    assert "interrupted" in str(stopped[1].verdict)
    shutil.copy(file, copy)
    whole = answers(processes(partial(vae, steps=40)))
    resumed = answers(processes(partial(vae, steps=40, checkpoint=file)))
    check_same_on_both(resumed)
    assert torch.equal(resumed[0].elbos, whole[0].elbos)
    assert all(torch.equal(value, resumed[0].state[name]) for name, value in whole[0].state.items())
    check_same(vae(steps=40, checkpoint=copy), whole, 40)


def test_a_damaged_checkpoint_is_told_to_all(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "run.pt").write_bytes(b"nothing of the kind")
    found = processes(partial(vae, steps=5, checkpoint=str(tmp_path / "run.pt")))
    assert [f.kind for f in found] == ["CheckpointError"] * SIZE
    assert all("run.pt" in f.message for f in found)


# -- SVI ------------------------------------------------------------------------------------------------


def svi(steps: int) -> Outcome:
    """Twenty steps of SVI on this process's part of the data."""
    with briefly(), distributed.together():
        model = VAE()
        guide = AVBGuide(
            model.model,
            sampler=ConditionalSampler(WIDTH, hidden=(8,), context_hidden=(8,)),
            adversary=InnerProductAdversary(hidden=(16,)),
        )
        elbo = AdversarialELBO(steps=steps, pretrain_steps=3)
        step = SVI(model.model, guide, elbo.optimizer(2e-3), loss=elbo)
        x = pixels().reshape(-1, 8, WIDTH)
        pyro.set_rng_seed(3)
        guide.setup(x[0])
        losses = []
        for i in range(steps):
            whole = x[i % len(x)]
            part = whole.reshape(distributed.world_size(), -1, WIDTH)[distributed.rank()]
            losses.append(step.step(part))
        state = {k: v.detach().clone() for k, v in (guide.state_dict() | model.state_dict()).items()}
        return Outcome(torch.tensor(losses), state, 0, None, "")


def test_svi(processes: Processes) -> None:
    check_same(svi(20), processes(svi, 20), 20)


# -- refusals -------------------------------------------------------------------------------------------


def few_draws() -> Outcome:
    return schools(avbvi.AffineTrunk, elbo=partial(AdversarialELBO, num_particles=1, pretrain_steps=1), steps=2)


def odd_one_by_one() -> Outcome:
    elbo = partial(AdversarialELBO, num_particles=3, vectorize_particles=False, pretrain_steps=1)
    return schools(avbvi.AffineTrunk, elbo=elbo, steps=2)


def other_data() -> Outcome:
    y = torch.arange(8.0, dtype=torch.float64) * (1 + torch.distributed.get_rank())
    return schools(avbvi.AffineTrunk, args=(y, torch.ones(8, dtype=torch.float64)), steps=2)


def amortised(make: Callable[[], VAE], argument: Any) -> None:
    with briefly():
        model = make()
        sampler = ConditionalSampler(WIDTH, hidden=(8,), context_hidden=(8,))
        guide = AVBGuide(model.model, sampler=sampler)
        avbvi.fit(model.model, argument, guide=guide, steps=2, progress=False)


def no_loader() -> None:
    amortised(VAE, pixels())


def other_batches() -> None:
    x = pixels() if torch.distributed.get_rank() else 1.0 - pixels()
    amortised(VAE, DataLoader(TensorDataset(x), batch_size=8))


def constants_in_a_batch() -> None:
    loader = DataLoader(
        TensorDataset(pixels()), batch_size=8, collate_fn=lambda rows: (torch.cat([r[0] for r in rows]), 1)
    )
    amortised(VAE, loader)


def scaled_by_hand() -> None:
    amortised(partial(VAE, declared=False, scale=5.0), DataLoader(TensorDataset(pixels()), batch_size=8))


def single_datum() -> None:
    amortised(VAE, DataLoader(TensorDataset(pixels(9)), batch_size=8))


class Subsampling(VAE):
    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self)
        with pyro.plate("data", N, subsample_size=8) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z), validate_args=False).to_event(1), obs=x[rows])


def subsampling() -> None:
    amortised(Subsampling, DataLoader(TensorDataset(pixels()), batch_size=N))


@pytest.mark.parametrize(
    ("work", "kind", "says"),
    [
        (few_draws, "ValueError", "num_particles=1 can't be divided among 2 processes; take at least 2"),
        (odd_one_by_one, "ValueError", "num_particles=3 draws, made one by one"),
        (other_data, "ValueError", "fit different models or data"),
        (no_loader, "TypeError", "DataLoader"),
        (other_batches, "ValueError", "DistributedSampler"),
        (constants_in_a_batch, "TypeError", "collate_fn"),
        (scaled_by_hand, "ModelError", "pyro.plate('data', N, subsample_size=len(x))"),
        (single_datum, "ValueError", "drop_last=True"),
        (subsampling, "ValueError", "can't be divided"),
    ],
)
def test_refusals(work: Callable[[], Any], kind: str, says: str, processes: Processes) -> None:
    found = processes(work)
    assert all(isinstance(f, Raised) for f in found), found
    for f in found:
        assert f.kind == kind, f
        assert says in f.message


# -- joining ----------------------------------------------------------------------------------------------


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*distributed.ENVIRONMENT, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_torchrun_nothing_is_joined(no_launcher: pytest.MonkeyPatch) -> None:
    assert distributed.init().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with distributed.together():
        assert not distributed.is_initialised()
        assert (distributed.world_size(), distributed.rank(), distributed.is_first()) == (1, 0, True)
        assert distributed.device() is None
    distributed.close()


def test_the_environment_of_torchrun_is_read(no_launcher: pytest.MonkeyPatch) -> None:
    no_launcher.setenv("RANK", "0")
    no_launcher.setenv("WORLD_SIZE", "1")
    with pytest.raises(RuntimeError, match=r"1 processes, but lacks \['LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'\]"):
        distributed.init()
    with pytest.raises(ValueError, match="minutes"):
        distributed.init(minutes=0.0)
    no_launcher.setenv("LOCAL_RANK", "0")
    no_launcher.setenv("MASTER_ADDR", "localhost")
    no_launcher.setenv("MASTER_PORT", "0")  # any that is free
    assert distributed.init("gloo") == torch.device("cpu")
    try:
        assert distributed.is_initialised()
        assert distributed.init() == torch.device("cpu")  # the group that is there
        with distributed.together():
            assert distributed.world_size() == 1
    finally:
        distributed.close()
    assert not distributed.is_initialised()


def test_nccl_needs_a_gpu_for_each_process(no_launcher: pytest.MonkeyPatch) -> None:
    for name, value in zip(distributed.ENVIRONMENT, ("9", "10", "9", "localhost", "0"), strict=True):
        no_launcher.setenv(name, value)
    no_launcher.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match=r"number 9 on a machine with 4.*backend='gloo'"):
        distributed.init("nccl")
