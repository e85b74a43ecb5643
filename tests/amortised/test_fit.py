"""fit with an amortised guide: the steps of SVI on a loader's batches, resumed to the bit, watched and refused."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import avbvi
from avbvi import (
    AdversarialELBO,
    AmortisedPosterior,
    AVBGuide,
    CheckpointError,
    Estimate,
    FitFailed,
    Schedule,
    Stopping,
)
from avbvi import recovery as recovery_module
from avbvi import training as training_module
from avbvi.amortised import runs as runs_module
from avbvi.amortised.adversaries import InnerProductAdversary
from avbvi.amortised.contrasts import ConditionalGaussianContrast
from avbvi.data.batches import LoaderBatches
from avbvi.fitting import DEFAULT_EPOCHS, DEFAULT_STEPS
from avbvi.training import Trainer

from .known import LinearGaussian, LinearSampler

# Pyro's own word for a loss that a run recovers from.
pytestmark = pytest.mark.filterwarnings("ignore:Encountered NaN")

N, BATCH = 20, 8


class NoisyRows(Dataset[Tensor]):
    """Data that are drawn afresh at each access, like dynamic binarisation."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        return self.x[index] + 0.1 * torch.randn(3)


class CountingLinear(nn.Linear):
    """Counts its evaluations in a buffer, as a running moment would."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, width_out)
        self.register_buffer("runs", torch.tensor(0.0))

    def forward(self, z: Tensor) -> Tensor:
        self.runs += 1.0
        return super().forward(z)


class Counted(LinearGaussian):
    def __init__(self) -> None:
        super().__init__()
        counting = CountingLinear(self.dim, self.width)
        counting.load_state_dict({**self.decoder.state_dict(), "runs": torch.tensor(0.0)})
        self.decoder = counting


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(N, 3, generator=generator)


def loader(data: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(NoisyRows(rows()) if data is None else data, batch_size=BATCH, shuffle=True, **options)


def small_guide(model: Any) -> AVBGuide:
    return AVBGuide(
        model,
        sampler=LinearSampler(3),
        adversary=InnerProductAdversary((8,)),
        contrast=ConditionalGaussianContrast(draws=16),
    )


def small_elbo(**options: Any) -> AdversarialELBO:
    schedule = options.pop("schedule", Schedule(polish=0.3))
    return AdversarialELBO(num_particles=2, adversary_steps=1, pretrain_steps=2, schedule=schedule, **options)


def fit(known: LinearGaussian, *args: Any, steps: int | None = 12, **options: Any) -> AmortisedPosterior:
    options = {"guide": small_guide(known.model), "elbo": small_elbo(), "seed": 3, "progress": False, **options}
    posterior = avbvi.fit(known.model, *args, steps=steps, **options)
    assert isinstance(posterior, AmortisedPosterior)
    return posterior


def state_of(posterior: AmortisedPosterior, known: LinearGaussian) -> dict[str, Tensor]:
    return {**posterior.guide.state_dict(), **{f"decoder.{k}": v for k, v in known.decoder.state_dict().items()}}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# -- the same steps as SVI ------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
def test_fit_takes_the_steps_of_svi(whole: bool) -> None:
    steps, known, other = 12, LinearGaussian(), LinearGaussian()
    options = {"lr": 3e-3, "model_lr": 1e-3}
    posterior = fit(known, rows() if whole else loader(), steps=steps, **options)
    found = state_of(posterior, known)

    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    batches = None if whole else LoaderBatches(loader())
    guide, loss = small_guide(other.model), small_elbo()
    loss.steps = steps
    svi = SVI(other.model, guide, loss.optimizer(**options), loss=loss)
    first = rows() if batches is None else batches.reference[0]
    loss._ready(other.model, guide, (first,), {})
    losses = []
    for _ in range(steps):
        (x,) = (rows(),) if batches is None else batches.next()
        losses.append(svi.step(x) / len(x))
    expected = {**guide.state_dict(), **{f"decoder.{k}": v for k, v in other.decoder.state_dict().items()}}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert posterior.run.history["elbo"] == pytest.approx([-losses[9]], rel=1e-5)


def test_rates_of_guide_and_model() -> None:
    """Adam's first step moves every weight by its rate, whatever the gradient."""
    moved = []
    for model_lr in (None, 1e-3):
        known = LinearGaussian()
        before = known.decoder.weight.detach().clone()
        fit(known, rows(), steps=1, lr=1e-1, model_lr=model_lr, elbo=small_elbo(schedule=Schedule(polish=0.0)))
        moved.append(float((known.decoder.weight.detach() - before).abs().max()))
    assert moved[0] / moved[1] == pytest.approx(100.0, rel=2e-2)


# -- seeds, resuming ------------------------------------------------------------------------------------


def test_seed_decides_the_result_and_the_callers_state_is_untouched() -> None:
    runs = [(LinearGaussian(), seed) for seed in (1, 1, 2)]
    states, before = [], torch.get_rng_state()
    for known, seed in runs:
        states.append(state_of(fit(known, loader(), seed=seed), known))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(states[0], states[1])
    assert not torch.equal(states[0]["sampler.a"], states[2]["sampler.a"])


class Stopped(Exception):
    pass


def stop_after(patch: pytest.MonkeyPatch, steps: int, error: BaseException) -> None:
    step = Trainer.step

    def limited(self: Trainer) -> float:
        if int(self.guide.step_count) == steps:
            raise error
        return step(self)

    patch.setattr(Trainer, "step", limited)


@pytest.mark.parametrize("taken", [1, 3, 7])
def test_resumed_equals_uninterrupted(taken: int, tmp_path: Path) -> None:
    """To the bit, with shuffled data that are drawn afresh, a smaller last batch, and a buffer of the model."""
    known = Counted()
    whole = fit(known, loader())
    expected = state_of(whole, known)
    file = tmp_path / "run.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module, "CHECKPOINT_SECONDS", -1.0)
        stop_after(patch, taken, Stopped())
        with pytest.raises(Stopped):
            fit(Counted(), loader(), checkpoint=file)
    torch.rand(7)
    again = Counted()
    resumed = fit(again, loader(), checkpoint=file)
    assert_same(state_of(resumed, again), expected)
    assert resumed.run.history == whole.run.history


def test_a_checkpoint_of_other_data_or_rates_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    fit(LinearGaussian(), loader(), steps=3, checkpoint=file)
    with pytest.raises(CheckpointError, match=r"belongs to another run.*'data': 20"):
        fit(LinearGaussian(), loader(NoisyRows(rows()[:16])), steps=3, checkpoint=file)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        fit(LinearGaussian(), loader(), steps=3, model_lr=1e-4, checkpoint=file)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        fit(LinearGaussian(), rows(), steps=3, checkpoint=file)


def test_fits_in_a_row_train_their_own_decoders() -> None:
    first, second = LinearGaussian(), LinearGaussian()
    one = fit(first, loader(), seed=1)
    kept = first.decoder.weight.detach().clone()
    other = fit(second, loader(), seed=1)
    assert torch.equal(second.decoder.weight, first.decoder.weight)  # from the same start by the same steps
    assert_same(state_of(one, first), state_of(other, second))
    assert torch.equal(first.decoder.weight, kept)


# -- recovery, interruption -----------------------------------------------------------------------------


def test_watching_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "CHECK_EVERY", 5)
    known = LinearGaussian()
    watched = fit(known, loader(), steps=23)
    expected = state_of(watched, known)
    monkeypatch.setattr(recovery_module.Recovery, "observe", lambda self, loss: None)
    other = LinearGaussian()
    assert_same(state_of(fit(other, loader(), steps=23), other), expected)


def test_uneven_minibatches_are_no_breakdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few data are far out: the losses of the batches that hold one are larger by orders of magnitude."""
    monkeypatch.setattr(recovery_module, "CHECK_EVERY", 10)
    x = rows()
    x[:3] *= 30.0
    posterior = fit(LinearGaussian(), loader(TensorDataset(x)), steps=150)
    values = torch.tensor(posterior.run.history["elbo"])
    assert float(values.max() - values.min()) > 100.0  # the case is what it is meant to be
    assert posterior.run.rollbacks == 0


def broken_at(patch: pytest.MonkeyPatch, step: int, damage: Any) -> None:
    """Do something to a run once, before a step."""
    original, done = Trainer.step, []

    def damaged(self: Trainer) -> float:
        if int(self.guide.step_count) == step and not done:
            done.append(True)
            with torch.no_grad():
                damage(self)
        return original(self)

    patch.setattr(Trainer, "step", damaged)


DAMAGE = {
    "decoder": lambda run: run.model.__self__.decoder.weight.fill_(math.nan),
    "sampler": lambda run: run.guide.part("sampler").l.fill_(math.inf),
    "collapse": lambda run: run.guide.part("sampler").l.mul_(1e-6),
    "adversary": lambda run: [p.mul_(1e6) for p in run.guide.part("adversary").parameters()],
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_breakdown_is_undone(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "CHECK_EVERY", 5)
    broken_at(monkeypatch, 22, DAMAGE[what])
    known = LinearGaussian()
    posterior = fit(known, loader(), steps=40)
    assert posterior.run.rollbacks >= 1
    assert any("the run broke down" in reason for reason in posterior.verdict.reasons)
    assert all(bool(torch.isfinite(value).all()) for value in state_of(posterior, known).values())
    assert float(posterior.guide.part("sampler").l.detach().diagonal().abs().min()) > 1e-3


def test_a_run_goes_back_to_where_neighbours_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "CHECK_EVERY", 5)
    script = iter([Estimate(5.0, 0.1), Estimate(0.2, 0.1), Estimate(0.5, 0.1), Estimate(2.0, 0.1)])
    looks, restored = [], []

    def scripted(guide: AVBGuide, data: Any, **options: Any) -> Estimate:
        looks.append(guide.part("sampler").l.detach().clone())
        return next(script, Estimate(0.1, 0.1))

    original, after = recovery_module.Recovery.restore_last, []
    step = Trainer.step

    def counted(self: Trainer) -> float:
        loss = step(self)
        after.append((self.elbo.caution, self.elbo.adversary_caution))
        return loss

    monkeypatch.setattr(Trainer, "step", counted)

    def noted(self: recovery_module.Recovery) -> None:
        original(self)
        restored.append(self.guide.part("sampler").l.detach().clone())

    monkeypatch.setattr(runs_module, "entropy_excess", scripted)
    monkeypatch.setattr(recovery_module.Recovery, "restore_last", noted)
    posterior = fit(LinearGaussian(), loader(), steps=40)
    # The first look is no reason: the two have yet to agree. The second one's state is the last good one.
    assert posterior.run.rollbacks == 1
    assert any("lost sight of q: the learned log q is 2 nats" in reason for reason in posterior.verdict.reasons)
    assert len(restored) == 1
    assert torch.equal(restored[0], looks[1])
    assert not torch.equal(looks[1], looks[2])
    assert sorted(set(after)) == [(0.5, 1.0), (1.0, 1.0)]  # the adversary keeps its rate


def test_a_run_that_breaks_down_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "CHECK_EVERY", 5)
    monkeypatch.setattr(recovery_module, "MOST_ROLLBACKS", 1)
    original = Trainer.step

    def damaged(self: Trainer) -> float:
        loss = original(self)
        if int(self.guide.step_count) > 20:
            with torch.no_grad():
                DAMAGE["decoder"](self)
        return loss

    monkeypatch.setattr(Trainer, "step", damaged)
    known = LinearGaussian()
    with pytest.raises(FitFailed, match="the fit broke down 2 times") as caught:
        fit(known, loader(), steps=60)
    posterior = caught.value.posterior
    assert isinstance(posterior, AmortisedPosterior)
    assert posterior.verdict.status == "failed"
    assert bool(torch.isfinite(known.decoder.weight).all())
    assert bool(torch.isfinite(posterior.sample(3)["z"]).all())


@pytest.mark.usefixtures("default_sigint")
def test_ctrl_c_ends_the_run_with_a_posterior_and_it_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    file, step = tmp_path / "run.pt", Trainer.step
    known = LinearGaussian()
    expected = state_of(fit(known, loader()), known)

    def interrupted(self: Trainer) -> float:
        if int(self.guide.step_count) == 5:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        posterior = fit(LinearGaussian(), loader(), checkpoint=file)
    assert posterior.run.interrupted
    assert posterior.run.steps == 6
    assert posterior.verdict.status != "ok"
    assert any("interrupted after 6 steps, 50% of the run" in reason for reason in posterior.verdict.reasons)
    assert posterior.sample(3)["z"].shape == (3, BATCH, 2)
    again = LinearGaussian()
    resumed = fit(again, loader(), checkpoint=file)
    assert not resumed.run.interrupted
    assert_same(state_of(resumed, again), expected)


# -- length, arguments ----------------------------------------------------------------------------------


def lengths(*args: Any, **options: Any) -> int:
    """The number of steps that a fit would take."""

    class Known(Exception):
        pass

    def train(self: Trainer, steps: int | None, minutes: float | None, **others: Any) -> None:
        raise Known(steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", train)
        with pytest.raises(Known) as caught:
            fit(LinearGaussian(), *args, **options)
    (steps,) = caught.value.args
    return int(steps)


def test_lengths_of_runs() -> None:
    assert lengths(loader(), steps=None, epochs=4) == 4 * 3
    assert lengths(loader(), steps=None) == DEFAULT_STEPS
    many = TensorDataset(rows().repeat(200, 1))
    assert lengths(DataLoader(many, batch_size=2), steps=None) == DEFAULT_EPOCHS * 2000
    assert lengths(rows(), steps=None) == DEFAULT_STEPS


def test_minutes() -> None:
    posterior = fit(LinearGaussian(), loader(), steps=None, minutes=0.005)
    assert posterior.run.steps > 0


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(rows())


def test_refusals() -> None:
    known = LinearGaussian()
    with pytest.raises(TypeError, match="a DataLoader as the model's argument needs an amortised guide"):
        avbvi.fit(known.model, loader(), steps=1)
    with pytest.raises(TypeError, match="must be the model's only positional argument, found 2"):
        fit(known, loader(), 20)
    with pytest.raises(ValueError, match="epochs counts passes over a DataLoader"):
        fit(known, rows(), steps=None, epochs=2)
    with pytest.raises(ValueError, match="epochs needs a DataLoader of known length"):
        fit(known, DataLoader(Endless(), batch_size=2), steps=None, epochs=2)
    with pytest.raises(ValueError, match="either steps or epochs, not both"):
        fit(known, loader(), steps=3, epochs=2)
    with pytest.raises(ValueError, match="stopping ends the training of a trunk"):
        fit(known, loader(), stopping=Stopping())
    with pytest.raises(ValueError, match="the DataLoader gives no batch"):
        fit(known, DataLoader(TensorDataset(rows()[:0]), batch_size=2))
    for name, value in (("epochs", 0), ("epochs", 2.5), ("model_lr", -1.0), ("model_lr", "fast")):
        with pytest.raises((TypeError, ValueError), match=name):
            fit(known, loader(), steps=None, **{name: value})
    with pytest.raises(ValueError, match="the context must have 3 numbers for each datum"):
        fit(known, loader(TensorDataset(torch.randn(9, 4))))


# -- what is learned ------------------------------------------------------------------------------------


def best_evidence(x: Tensor, dim: int, scale: float) -> float:
    """The highest mean log p(x) that a linear-Gaussian model of this noise can have: probabilistic PCA.

    Source: Tipping and Bishop (1999), Probabilistic principal component analysis, JRSS B 61(3), appendix A.
    """
    covariance = torch.cov(x.mT, correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    w = vectors[:, -dim:] * (values[-dim:] - scale**2).clamp_min(0.0).sqrt()
    fitted = w @ w.mT + scale**2 * torch.eye(x.shape[1])
    return float(torch.distributions.MultivariateNormal(x.mean(0), fitted).log_prob(x).mean())


@pytest.mark.slow
def test_decoder_and_encoder_reach_the_optimum() -> None:
    """A decoder learned from minibatches has the evidence of the best one, and the ELBO is close to it."""
    known, source = LinearGaussian(), LinearGaussian()
    x = source.data(400)
    with torch.no_grad():
        known.decoder.weight.copy_(0.3 * torch.randn(3, 2))
        known.decoder.bias.zero_()
    guide = AVBGuide(known.model, sampler=LinearSampler(3), adversary=InnerProductAdversary((32,)))
    options = {"guide": guide, "seed": 100, "progress": False, "lr": 1e-2}
    posterior = avbvi.fit(
        known.model, DataLoader(TensorDataset(x), batch_size=100, shuffle=True), epochs=300, **options
    )
    assert isinstance(posterior, AmortisedPosterior)
    optimum = best_evidence(x, 2, known.scale)
    evidence, elbo = float(known.log_evidence(x).mean()), posterior.elbo(x)
    assert optimum - 0.01 < evidence < optimum + 1e-4
    assert evidence - 0.05 < elbo.value < evidence + 0.02
    assert posterior.verdict.status == "ok", str(posterior.verdict)
    mean, covariance = known.posterior(x)
    draws = posterior.sample(500, x)["z"]
    sd = covariance.diagonal().sqrt()
    assert float(((draws.mean(0) - mean) / sd).square().mean().sqrt()) < 0.15
    assert bool(((draws.std(0).mean(0) / sd - 1.0).abs() < 0.1).all())


def test_dropout_is_over_when_the_fit_is(tmp_path: Path) -> None:
    known = LinearGaussian()
    x = known.data(N)
    guide = AVBGuide(
        known.model,
        sampler=LinearSampler(known.width),
        adversary=InnerProductAdversary((16,), dropout=0.5),
        contrast=ConditionalGaussianContrast(),
    )
    posterior = avbvi.fit(known.model, x, guide=guide, steps=5, seed=0, progress=False)
    draws = {"z": posterior.sample(3)["z"]}
    assert not any(module.training for module in guide.modules())
    first = posterior.log_prob(draws)
    assert torch.equal(posterior.log_prob(draws), first)
    guide.train()
    assert not torch.equal(posterior.log_prob(draws), first)
