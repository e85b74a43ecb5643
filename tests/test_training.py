"""fit: the same steps as SVI, reproducible, resumable, and checked."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

import avbvi
from avbvi import AdversarialELBO, AVBGuide, CheckpointError, IdentityTrunk, Posterior, Schedule, Stopping
from avbvi import elbo as elbo_module
from avbvi import training as training_module
from avbvi.checkpoints import write_atomically
from avbvi.diagnostics import choose_stage, judge
from avbvi.hints import hint

X = torch.linspace(-1.0, 2.0, 12)
Y = 0.7 - 0.4 * X + 0.5 * torch.sin(17.0 * X)
SIGMA = 0.5


def regression(x: Tensor, y: Tensor | None = None) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, SIGMA), obs=y)


def small_elbo(**options: Any) -> AdversarialELBO:
    schedule = options.pop("schedule", None) or Schedule(polish=0.3, settle=0.0)
    return AdversarialELBO(num_particles=64, pretrain_steps=5, schedule=schedule, **options)


def brief_verdict(patch: pytest.MonkeyPatch) -> None:
    """Judge fits by few draws: these tests are about other things."""
    patch.setattr(elbo_module, "choose_stage", partial(choose_stage, n=500))
    patch.setattr(training_module, "judge", partial(judge, n=500))


def fit(steps: int | None = 40, seed: int | None = 3, **options: Any) -> Posterior:
    return quick_fit(regression, X, Y, steps=steps, seed=seed, **options)


def quick_fit(model: Any, *args: Any, **options: Any) -> Posterior:
    elbo = options.pop("elbo", None) or small_elbo()
    with pytest.MonkeyPatch.context() as patch:
        brief_verdict(patch)
        return avbvi.fit(model, *args, progress=False, elbo=elbo, **options)


def draws_of(posterior: Posterior, seed: int = 0) -> Tensor:
    pyro.set_rng_seed(seed)
    draws = posterior.sample(50)
    return torch.stack([draws["a"], draws["b"]])


# -- the same steps as SVI ----------------------------------------------------------------------------


def test_fit_takes_the_steps_of_svi(monkeypatch: pytest.MonkeyPatch) -> None:
    brief_verdict(monkeypatch)
    steps = 30

    def elbo() -> AdversarialELBO:
        inner = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=1)
        return AdversarialELBO(inner, pretrain_steps=5)

    posterior = fit(steps, seed=11, elbo=elbo(), lr=3e-3)

    pyro.set_rng_seed(11)
    guide = AVBGuide(regression)
    loss = elbo()
    loss.steps = steps
    svi = SVI(regression, guide, loss.optimizer(lr=3e-3), loss=loss)
    losses = [svi.step(X, Y) for _ in range(steps)]

    theirs = guide.state_dict()
    for name, value in posterior.guide.state_dict().items():
        # fit's log-density is recorded: the same operations, but gradients are multiplied in another order.
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4, msg=name)
    assert posterior.run.history["elbo"] == pytest.approx([-losses[i] for i in (9, 19, 29)], rel=1e-4)


# -- seeds ----------------------------------------------------------------------------------------------


def test_seed_decides_the_result() -> None:
    first, second, other = draws_of(fit(seed=1)), draws_of(fit(seed=1)), draws_of(fit(seed=2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_callers_random_state_is_untouched() -> None:
    before = pyro.util.get_rng_state()
    fit(12, seed=5)
    after = pyro.util.get_rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["random"] == after["random"]
    np.testing.assert_array_equal(before["numpy"][1], after["numpy"][1])
    assert before["numpy"][2:] == after["numpy"][2:]


def test_without_seed_the_callers_state_is_used() -> None:
    pyro.set_rng_seed(9)
    first = fit(12, seed=None).guide.state_dict()
    pyro.set_rng_seed(9)
    second = fit(12, seed=None).guide.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


# -- arguments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 5, "minutes": 1.0}, ValueError, "either steps or minutes"),
        ({"steps": 0}, ValueError, "steps must be positive"),
        ({"minutes": -1.0}, ValueError, "minutes must be positive"),
        ({"lr": 0.0}, ValueError, "lr must be positive"),
        ({"elbo": AdversarialELBO(steps=5)}, ValueError, r"fit\(steps=...\)"),
        ({"minutes": 1.0, "stopping": Stopping()}, ValueError, "without minutes"),
        (
            {"guide": AVBGuide(regression, trunk=IdentityTrunk()), "stopping": Stopping()},
            ValueError,
            "nothing to train",
        ),
        (
            {"elbo": AdversarialELBO(schedule=Schedule(trunk=0.0)), "stopping": Stopping()},
            ValueError,
            "ends the trunk's stage",
        ),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        avbvi.fit(regression, X, Y, progress=False, **options)


def test_a_data_loader_is_refused() -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y))
    with pytest.raises(TypeError, match="amortised"):
        avbvi.fit(regression, loader, steps=5)


def test_model_kwargs_reach_the_model() -> None:
    posterior = quick_fit(regression, X, model_kwargs={"y": Y}, seed=3, steps=40)
    assert torch.equal(draws_of(posterior), draws_of(fit()))


def test_a_second_run_with_the_same_loss_object() -> None:
    """The loss belongs to the caller: fit leaves no length of its run behind."""
    elbo = small_elbo()
    first = draws_of(fit(elbo=elbo))
    assert elbo.steps is None
    assert elbo.clock is None
    assert torch.equal(draws_of(fit(elbo=elbo)), first)


# -- by the clock -----------------------------------------------------------------------------------------


def test_minutes() -> None:
    started = time.monotonic()
    posterior = fit(steps=None, minutes=0.15)
    elapsed = time.monotonic() - started
    assert posterior.run.steps == int(posterior.guide.step_count) > 0
    assert posterior.comparison is not None
    assert elapsed < 9.0 + 20.0  # set-up and verdict come on top, on whatever machine this runs


def test_history_and_seconds() -> None:
    run = fit(40).run
    assert run.history["step"] == [10.0, 20.0, 30.0, 40.0]
    assert run.history["stage"] == [0.0, 0.0, 0.0, 1.0]  # half of the work is four fifths of the steps
    assert all(math.isfinite(v) for v in run.history["elbo"])
    assert (run.steps, run.seed, run.skipped_steps) == (40, 3, 0)
    assert run.seconds > 0.0


# -- until a rule stops it --------------------------------------------------------------------------------

#: Fires at its first look: of at most 100 steps 24 anneal, and 16 more are seen.
AT_ONCE = Stopping(tolerance=1e9, minimum=16)


def stopping_fit(most: int, **options: Any) -> Posterior:
    """A fit of one trunk, half of whose work is the trunk's, that a rule ends as soon as it may."""
    schedule = options.pop("schedule", Schedule(trunk=0.5, polish=0.3))
    options.setdefault("stopping", AT_ONCE)
    return fit(most, guide=AVBGuide(regression, trunk=avbvi.FlowTrunk()), elbo=small_elbo(schedule=schedule), **options)


def test_a_stopping_rule_sets_the_length_of_the_run() -> None:
    run = stopping_fit(100).run
    assert run.stopped_at == 40
    assert run.steps == 62  # a trunk's stage of 1.25 * 40 steps, four fifths of the whole
    assert run.history["stage"] == [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert AT_ONCE.count == 0  # fit uses a copy


def test_the_learning_rate_is_constant_until_the_rule_fires(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = []
    step = training_module.Trainer.step

    def recorded(self: training_module.Trainer) -> float:
        loss = step(self)
        factors.append(self.elbo.lr_factor())
        return loss

    monkeypatch.setattr(training_module.Trainer, "step", recorded)
    posterior = stopping_fit(100, schedule=Schedule(trunk=1.0))
    # All steps are the trunk's here: 30 anneal, 16 are seen, and a quarter of these 46 decay.
    assert posterior.run.steps == 58
    assert factors[:47] == [1.0] * 47
    assert factors[47:] == pytest.approx([0.5 * (1.0 + math.cos(math.pi * i / 12.0)) for i in range(1, 12)])


def test_a_stopping_rule_waits_until_the_trunks_have_raced() -> None:
    schedule = Schedule(trunk=0.5, polish=0.3, settle=0.0)
    posterior = fit(400, stopping=AT_ONCE, elbo=small_elbo(schedule=schedule))
    # Three tenths of four fifths of 400 steps are the race, 16 more are seen.
    assert posterior.run.stopped_at == 112
    assert posterior.run.steps == 175  # 1.25 * 112 steps are four fifths of the whole
    assert bool(posterior.guide.trunk_decided)


def test_a_rule_that_does_not_fire_leaves_the_maximum() -> None:
    run = stopping_fit(50, stopping=Stopping(tolerance=1e-9, minimum=16)).run
    assert (run.steps, run.stopped_at) == (50, None)


# -- checkpoints ------------------------------------------------------------------------------------------


class Interruption(Exception):
    pass


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Make fit save after every step, and stop once ``after`` steps are done."""
    step = training_module.Trainer.step

    def interrupted(self: training_module.Trainer) -> float:
        if int(self.guide.step_count) == after:
            raise Interruption
        return step(self)

    monkeypatch.setattr(training_module, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training_module.Trainer, "step", interrupted)


@pytest.fixture(scope="module")
def uninterrupted() -> Posterior:
    pyro.clear_param_store()
    return fit(40)


# Of 40 steps the trunk has 20; the polish begins with the 35th.
@pytest.mark.parametrize("after", [1, 11, 20, 27, 33, 34, 35, 38])
def test_resumed_equals_uninterrupted(
    after: int, uninterrupted: Posterior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.pt"
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Interruption):
            fit(40, checkpoint=file)
    pyro.clear_param_store()
    pyro.set_rng_seed(1234)
    resumed = fit(40, checkpoint=file)
    expected = uninterrupted.guide.state_dict()
    for name, value in resumed.guide.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert resumed.run.history == uninterrupted.run.history
    assert resumed.verdict.status == uninterrupted.verdict.status
    assert resumed.verdict.figures == pytest.approx(uninterrupted.verdict.figures, nan_ok=True)
    assert torch.equal(draws_of(resumed), draws_of(uninterrupted))


@pytest.fixture(scope="module")
def stopped() -> Posterior:
    pyro.clear_param_store()
    return stopping_fit(100)


# The rule sees steps 25 to 40, the rate decays to 50, the rest is the adversarial stage's.
@pytest.mark.parametrize("after", [30, 45, 58])
def test_a_resumed_run_goes_on_with_its_stopping_rule(
    after: int, stopped: Posterior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.pt"
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Interruption):
            stopping_fit(100, checkpoint=file)
    pyro.clear_param_store()
    resumed = stopping_fit(100, checkpoint=file)
    expected = stopped.guide.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.guide.state_dict().items())
    assert (resumed.run.steps, resumed.run.stopped_at) == (62, 40)
    assert resumed.run.history == stopped.run.history


def test_a_finished_run_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.pt"
    first = fit(40, checkpoint=file)
    with monkeypatch.context() as patch:
        interrupt(patch, after=0)
        again = fit(40, checkpoint=file)
    assert torch.equal(draws_of(first), draws_of(again))
    assert again.run.steps == 40
    assert again.comparison is not None
    assert again.verdict.reasons == first.verdict.reasons


def test_two_interruptions(uninterrupted: Posterior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.pt"
    for after in (25, 36):
        with monkeypatch.context() as patch:
            interrupt(patch, after)
            with pytest.raises(Interruption):
                fit(40, checkpoint=file)
    assert torch.equal(draws_of(fit(40, checkpoint=file)), draws_of(uninterrupted))


@pytest.mark.parametrize("change", [{"seed": 4}, {"steps": 41}, {"lr": 1e-2}, {"stopping": Stopping()}])
def test_checkpoint_of_another_run(change: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    fit(12, checkpoint=file)
    with pytest.raises(CheckpointError, match="belongs to another run: its fingerprint"):
        fit(**{"steps": 12, **change}, checkpoint=file)


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    def other(x: Tensor, y: Tensor) -> None:
        pyro.sample("c", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    file = tmp_path / "run.pt"
    fit(12, checkpoint=file)
    with pytest.raises(CheckpointError, match="belongs to another run: its sites"):
        quick_fit(other, X, Y, seed=3, steps=12, checkpoint=file)


def test_checkpoint_of_another_guide(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    fit(12, checkpoint=file)
    with pytest.raises(CheckpointError, match="belongs to another run: its parts"):
        fit(12, checkpoint=file, guide=AVBGuide(regression, contrast=avbvi.GaussianContrast()))


def test_damaged_and_foreign_checkpoints(tmp_path: Path) -> None:
    damaged, foreign, posterior = (tmp_path / name for name in ("damaged.pt", "foreign.pt", "posterior.pt"))
    fit(12, checkpoint=damaged).save(posterior)
    damaged.write_bytes(damaged.read_bytes()[:-700])
    with pytest.raises(CheckpointError, match="damaged"):
        fit(12, checkpoint=damaged)
    torch.save({"weights": torch.ones(2)}, foreign)
    with pytest.raises(CheckpointError, match="no avbvi-checkpoint file"):
        fit(12, checkpoint=foreign)
    with pytest.raises(CheckpointError, match="avbvi-posterior"):
        fit(12, checkpoint=posterior)


@pytest.mark.parametrize("broken", ["os.replace", "torch.save"])
def test_a_failed_save_leaves_the_old_file(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.pt"
    write_atomically(file, {"version": 1})
    before = file.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        with pytest.raises(OSError, match="no space"):
            write_atomically(file, {"version": 2})
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_a_checkpoint_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="create it first"):
        fit(12, checkpoint=tmp_path / "missing" / "run.pt")


# -- learned parameters of the model ------------------------------------------------------------------------


def with_param(x: Tensor, y: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(3.0), constraint=constraints.positive)
    _regression_with_scale(x, y, scale)


def _regression_with_scale(x: Tensor, y: Tensor, scale: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, scale), obs=y)


class WithModule(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(3.0).log())

    def forward(self, x: Tensor, y: Tensor) -> None:
        _regression_with_scale(x, y, self.log_scale.exp())


@pytest.mark.parametrize("kind", ["param", "module"])
def test_a_learned_parameter_trains_and_switches_the_hint_off(kind: str) -> None:
    module = WithModule()
    model = with_param if kind == "param" else module
    posterior = quick_fit(model, X, Y, seed=0, steps=60, lr=0.01)
    learned = pyro.param("scale") if kind == "param" else module.log_scale.exp()
    # The residuals' sd is .35: the ELBO rises as the scale falls from 3, by about .01 in its logarithm a step.
    assert float(learned.detach()) < 2.8
    guide = posterior.guide
    target = guide.target()
    assert target is not None
    assert target.has_parameters
    guide.stage.fill_(1)
    draw = guide.draw(3)
    assert hint(guide, guide.target(*posterior.args), draw, guide.contrast.log_prob(draw.base)) is None


def test_a_learned_parameter_is_in_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(file: Path | None) -> tuple[Posterior, float]:
        pyro.clear_param_store()
        posterior = quick_fit(with_param, X, Y, seed=0, steps=40, lr=0.01, checkpoint=file)
        return posterior, float(pyro.param("scale").detach())

    whole, scale = run(None)
    file = tmp_path / "run.pt"
    with monkeypatch.context() as patch:
        interrupt(patch, 26)
        with pytest.raises(Interruption):
            run(file)
    resumed, resumed_scale = run(file)
    assert resumed_scale == scale
    assert torch.equal(draws_of(resumed), draws_of(whole))


# -- quality ------------------------------------------------------------------------------------------------


def exact_regression() -> tuple[Tensor, Tensor]:
    """Mean (2,) and covariance (2, 2) of (a, b), by conjugacy."""
    design = torch.stack([torch.ones_like(X), X], -1).double()
    precision = torch.eye(2).double() + design.T @ design / SIGMA**2
    return torch.linalg.solve(precision, design.T @ Y.double() / SIGMA**2), torch.linalg.inv(precision)


@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["default", "affine"])
def test_a_conjugate_normal_is_recovered(trunk: str) -> None:
    guide = AVBGuide(regression, trunk=avbvi.AffineTrunk() if trunk == "affine" else None)
    posterior = avbvi.fit(regression, X, Y, guide=guide, seed=0, steps=2000, progress=False)
    draws = posterior.sample(200_000)
    z = torch.stack([draws["a"], draws["b"]], -1).double()
    mean, covariance = exact_regression()
    sd = covariance.diagonal().sqrt()
    assert ((z.mean(0) - mean).abs() / sd).max() < 0.03
    # All directions: the singular values of L^-1 times the draws' covariance factor.
    ratio = torch.linalg.svdvals(
        torch.linalg.solve(torch.linalg.cholesky(covariance), torch.linalg.cholesky(torch.cov(z.T)))
    )
    assert ratio.min() > 0.97
    assert ratio.max() < 1.03
    assert posterior.verdict.status == "ok", str(posterior.verdict)


# -- starts that once failed ----------------------------------------------------------------------------------


def test_a_ridge_of_optima() -> None:
    """Along a ring of maxima the Hessian is singular up to rounding."""
    density = avbvi.LogDensity(lambda z: -0.5 * ((z.square().sum(-1).sqrt() - 2.0) / 0.3).square(), (2,))
    posterior = quick_fit(density, seed=0, steps=4)
    for trunk in posterior.guide.part("trunk").candidates:
        scale_tril = trunk.scale_tril
        assert bool(torch.isfinite(scale_tril).all())
        assert float((scale_tril @ scale_tril.T).diagonal().max()) < 100.0


def test_a_start_that_wanders_off_is_no_error() -> None:
    """The joint density of a hierarchical Gamma model is unbounded; validation must not stop the search."""

    def pumps(hours: Tensor, failures: Tensor) -> None:
        shape = pyro.sample("shape", dist.Exponential(1.0))
        rate = pyro.sample("rate", dist.Gamma(0.1, 1.0))
        with pyro.plate("pumps", len(hours)):
            failure_rate = pyro.sample("failure_rate", dist.Gamma(shape, rate))
            pyro.sample("failures", dist.Poisson(failure_rate * hours), obs=failures)

    hours = torch.tensor([94.3, 15.7, 62.9, 126.0, 5.24, 31.4, 1.05, 1.05, 2.1, 10.5])
    failures = torch.tensor([5.0, 1.0, 5.0, 14.0, 3.0, 19.0, 1.0, 1.0, 4.0, 22.0])
    posterior = quick_fit(pumps, hours, failures, seed=0, steps=4)
    assert math.isfinite(posterior.elbo().value)


def test_a_trained_guide_and_other_settings_are_refused(tmp_path: Path) -> None:
    posterior = fit(20)
    with pytest.raises(ValueError, match=r"guide was trained before \(20 steps\)"):
        avbvi.fit(posterior.model, *posterior.args, guide=posterior.guide, steps=20)
    path = tmp_path / "run.pt"
    fit(20, checkpoint=path)
    with pytest.raises(CheckpointError, match="another run"):
        fit(20, checkpoint=path, elbo=small_elbo(schedule=Schedule(anneal=0.1)))


def test_a_resumed_run_knows_the_modes_that_the_start_found(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    first = fit(20, checkpoint=path)
    again = fit(20, checkpoint=path)
    assert first.guide.modes is not None
    assert again.guide.modes is not None
    for mine, theirs in zip(first.guide.modes, again.guide.modes, strict=True):
        assert torch.equal(mine, theirs)


def test_run_tells_why_its_model_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    brief_verdict(monkeypatch)

    def branching() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", -z.square() if bool((z.abs() < 1e9).all()) else -z)

    posterior = avbvi.fit(branching, steps=10, seed=0, progress=False)
    assert posterior.run.execution.startswith("step by step; the model is run at every step, since")
    assert fit(10).run.execution == "step by step"
