"""The training that all latent-variable models share: schedule, averages, minibatches, resuming."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import avbvi
from avbvi.early_stopping import EarlyStopping
from avbvi.errors import NonFiniteError
from benchmarks.latent import LatentWeight, Recipe, Training, Validation, train
from models.encoders import GaussianEncoder, MLPBody
from models.vaes import VAE, NormalLikelihood


class _FreshPixels:
    """Batches in a new order, with new pixels, in each epoch."""

    def __init__(self, intensities: Tensor, batch_size: int) -> None:
        self.intensities, self.batch_size = intensities, batch_size

    def __iter__(self) -> Iterator[Tensor]:
        for rows in torch.randperm(len(self.intensities)).split(self.batch_size):
            yield torch.bernoulli(self.intensities[rows])


def _training(recipe: Recipe, loader: object = None, seed: int = 0) -> Training:
    """A small VAE of 10 images, always from the same initial parameters."""
    pyro.set_rng_seed(5)
    vae, encoder = VAE(nn.Linear(2, 6), 2), GaussianEncoder(MLPBody(6, (8,)), 2)
    loader = _FreshPixels(torch.rand(10, 6), 4) if loader is None else loader
    elbo = Trace_ELBO(max_plate_nesting=1)
    parameters = [{"params": encoder.parameters()}, {"params": vae.parameters(), "lr": 0.5 * recipe.lr}]
    return Training(elbo, vae.model, encoder.guide, loader, parameters, recipe, seed=seed)  # type: ignore[arg-type]


def _parameters(training: Training) -> list[Tensor]:
    return [p.detach().clone() for p in training._parameters]


def test_a_run_repeats_from_its_seed() -> None:
    recipe = Recipe(20, lr=1e-2)
    first, second, other = _training(recipe), _training(recipe), _training(recipe, seed=1)
    first.run()
    torch.rand(3)  # the caller's random state is no part of a run
    second.run()
    other.run()
    assert all(torch.equal(a, b) for a, b in zip(_parameters(first), _parameters(second), strict=True))
    assert first.losses == second.losses != other.losses


def test_a_run_leaves_the_callers_state_alone() -> None:
    pyro.param("own", torch.ones(2))
    pyro.module("decoder", nn.Linear(3, 3))
    training = _training(Recipe(3))
    state = torch.get_rng_state()
    training.run()
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pyro.get_param_store().keys()) == {"own", "decoder$$$weight", "decoder$$$bias"}


def _data_loader(own_generator: bool) -> DataLoader[tuple[Tensor, ...]]:
    data = TensorDataset(torch.bernoulli(torch.full((10, 6), 0.5), generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(3) if own_generator else None
    return DataLoader(data, batch_size=4, shuffle=True, generator=generator)


@pytest.mark.parametrize("kind", ["fresh", "loader", "loader with a generator"])
@pytest.mark.parametrize("done", [0, 1, 3, 8])
def test_a_run_in_pieces_ends_where_an_uninterrupted_one_does(kind: str, done: int) -> None:
    # Three batches in an epoch, the last one smaller: pieces that end within, before and after an epoch.
    def make() -> Training:
        loader = None if kind == "fresh" else _data_loader(kind == "loader with a generator")
        return _training(Recipe(14, lr=1e-2, warm_up=0.5, average=0.9), loader)

    whole = make()
    whole.run()
    before = make()
    while before.step_count < done:
        with before._own_state():
            before._step()
    state = before.state_dict()
    after = make()
    torch.manual_seed(99)
    after.load_state_dict(state)
    assert after.run()
    assert after.step_count == 14
    assert all(torch.equal(a, b) for a, b in zip(_parameters(whole), _parameters(after), strict=True))
    assert after.losses == whole.losses
    assert after.seconds > state["seconds"]


def test_a_state_is_plain_data(tmp_path: Path) -> None:
    training = _training(Recipe(4, average=0.9))
    assert not training.run(seconds=0.0)
    assert training.step_count == 0
    assert training.run()
    torch.save(training.state_dict(), tmp_path / "state.pt")
    again = _training(Recipe(4, average=0.9))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.finished
    assert all(torch.equal(a, b) for a, b in zip(_parameters(training), _parameters(again), strict=True))


def test_rates_follow_half_a_cosine() -> None:
    recipe = Recipe(8, lr=0.1)
    training = _training(recipe)
    rates = []
    step = training.optimizer.step

    def noting() -> None:
        rates.append([group["lr"] for group in training.optimizer.param_groups])
        step()

    training.optimizer.step = noting  # type: ignore[assignment, method-assign]
    training.run()
    expected = [0.1 * 0.5 * (1.0 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert [rate for rate, _ in rates] == pytest.approx(expected)
    assert [rate for _, rate in rates] == pytest.approx([0.5 * rate for rate in expected])


def test_the_average_is_that_of_the_steps() -> None:
    recipe = Recipe(6, lr=1e-2, average=0.5)
    training = _training(recipe)
    average = _parameters(training)
    seen = []
    for k in range(1, 7):
        before = training._averages
        with training._own_state():
            training._step()
        seen.append(_parameters(training))
        if k < 6:
            decay = min(0.5, (1.0 + k) / (10.0 + k))
            average = [decay * a + (1.0 - decay) * p for a, p in zip(average, seen[-1], strict=True)]
            assert before is not None
            for own, expected in zip(before, average, strict=True):
                torch.testing.assert_close(own, expected)
    # The finished run has the average in the place of the last step's parameters.
    without = _training(Recipe(6, lr=1e-2))
    without.run()
    decay = min(0.5, 7.0 / 16.0)
    for mean, last, final in zip(average, _parameters(without), seen[-1], strict=True):
        torch.testing.assert_close(final, decay * mean + (1.0 - decay) * last)


def test_a_weight_multiplies_the_latents_terms() -> None:
    vae, encoder = VAE(nn.Linear(2, 6), 2), GaussianEncoder(MLPBody(6, (8,)), 2)
    x = torch.bernoulli(torch.full((3, 6), 0.5))
    pyro.set_rng_seed(1)
    with LatentWeight(0.25):
        loss = Trace_ELBO(max_plate_nesting=1).loss(vae.model, encoder.guide, x, 12)
    pyro.set_rng_seed(1)
    with torch.no_grad():
        z = encoder.posterior(x).rsample()
        reconstruction = vae.likelihood(vae.decoder(z)).log_prob(x)
        kl = encoder.posterior(x).log_prob(z) - vae.prior(z).log_prob(z)
    assert loss == pytest.approx(-4.0 * float((reconstruction - 0.25 * kl).sum()), rel=1e-5)


def test_the_weight_rises_over_the_warm_up() -> None:
    assert [Recipe(10, warm_up=0.4).weight(k) for k in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert Recipe(10).weight(0) == 1.0


def test_training_maximises_the_mean_elbo_per_datum() -> None:
    # A decoder without weights: x ~ N(b, 1), whose best b is the mean of the data, to which minibatches agree.
    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(2))

        def forward(self, z: Tensor) -> Tensor:
            return self.bias.expand(*z.shape[:-1], 2)

    vae, encoder = VAE(Bias(), 1, NormalLikelihood(1.0)), GaussianEncoder(nn.Linear(2, 1), 1)
    x = torch.tensor([3.0, -2.0]) + 0.5 * torch.randn(60, 2)
    training = train(
        Trace_ELBO(max_plate_nesting=1),
        vae.model,
        encoder.guide,
        list(x.split(20)),
        [*vae.parameters(), *encoder.parameters()],
        Recipe(300, lr=0.1),
        seed=0,
    )
    assert training.finished
    assert float((vae.decoder.bias.detach() - x.mean(0)).abs().max()) < 0.02
    evidence = torch.distributions.Normal(x.mean(0), 1.0).log_prob(x).sum(-1).mean()
    assert training.losses[-1] == pytest.approx(-float(evidence), abs=0.1)
    assert len(training.losses) == 100


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_gradients_that_are_not_finite_are_skipped_a_few_times() -> None:
    good = torch.ones(4, 6)
    training = _training(Recipe(12), [good, good, torch.full((4, 6), math.nan)])
    training.run()
    assert training.skipped == 4
    assert all(bool(torch.isfinite(p).all()) for p in _parameters(training))
    with pytest.raises(NonFiniteError, match="gradients were not finite in 50 steps in a row, up to step 51"):
        _training(Recipe(100), [good, *[torch.full((4, 6), math.nan)] * 99]).run()


# -- dropout, running moments, validation -------------------------------------------------------------------------


class _Body(nn.Module):
    """Features by dropout and running moments; notes the mode in which it is used."""

    out_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ELU())
        self.used: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.used.append(self.training)
        features: Tensor = self.network(x)
        return features


class _Run:
    """Training of a VAE with dropout, with or without validation on data of its own."""

    def __init__(self, recipe: Recipe, every: int | None = None, patience: int = 1000) -> None:
        pyro.set_rng_seed(5)
        self.vae, self.encoder = VAE(nn.Linear(2, 6), 2), GaussianEncoder(_Body(), 2)
        self.modules = [self.vae, self.encoder]
        held_out, self.figures = torch.bernoulli(torch.full((4, 6), 0.3)), list[float]()
        self.seen: list[list[Tensor]] = []
        elbo = Trace_ELBO(max_plate_nesting=1)

        def figure() -> float:
            self.figures.append(elbo.loss(self.vae.model, self.encoder.guide, held_out))
            self.seen.append([t.clone() for module in self.modules for t in module.state_dict().values()])
            return self.figures[-1]

        self.stopping = EarlyStopping(self.modules, patience=patience)
        self.training = Training(
            *(elbo, self.vae.model, self.encoder.guide, _FreshPixels(torch.rand(10, 6), 4)),
            [p for module in self.modules for p in module.parameters()],
            recipe,
            seed=0,
            modules=self.modules,
            validation=None if every is None else Validation(self.stopping, figure, every),
        )

    def state(self) -> list[Tensor]:
        return [t.clone() for module in self.modules for t in module.state_dict().values()]


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_modules_are_in_training_mode_during_a_run_only() -> None:
    run = _Run(Recipe(3))
    run.encoder.eval()
    assert run.training.run()
    assert run.encoder.body.used == [True] * 3
    assert not any(part.training for module in run.modules for part in module.modules())
    broken = _Run(Recipe(3))
    broken.training.elbo = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        broken.training.run()
    assert not broken.encoder.training


def test_validation_is_at_every_so_many_steps_and_at_the_last_without_dropout() -> None:
    run = _Run(Recipe(7, lr=1e-2), every=3)
    run.training.run()
    assert len(run.figures) == 3
    assert [i for i, training in enumerate(run.encoder.body.used) if not training] == [3, 7, 9]


@pytest.mark.parametrize("average", [None, 0.5])
def test_validation_does_not_change_the_run(average: float | None) -> None:
    recipe = Recipe(9, lr=1e-2, average=average)
    with_it, without = _Run(recipe, every=2), _Run(recipe)
    with_it.training.run()
    without.training.run()
    assert with_it.training.losses == without.training.losses
    # The last look was at what the run without validation ends with; the best look is what the other one takes.
    assert _same(with_it.seen[-1], without.state())
    best = min(range(5), key=lambda i: with_it.figures[i])
    assert _same(with_it.state(), with_it.seen[best])


def test_a_run_ends_when_patience_does_and_takes_the_best() -> None:
    run = _Run(Recipe(400, lr=0.3), every=1, patience=3)
    assert run.training.run()
    best = min(range(len(run.figures)), key=lambda i: run.figures[i])
    assert run.training.step_count == len(run.figures) == best + 4 < 400
    assert _same(run.state(), run.seen[best])
    assert run.training.run()  # the run is over
    assert run.training.step_count == best + 4
    assert not run.encoder.training


def test_what_is_looked_at_are_the_averages() -> None:
    recipe = Recipe(6, lr=1e-2, average=0.9)
    run, without = _Run(recipe, every=4), _Run(recipe)
    while without.training.step_count < 4:
        with without.training._own_state(), without.training._training_mode():
            without.training._step()
    run.training.run()
    assert without.training._averages is not None
    looked_at = dict(zip([*run.vae.state_dict(), *run.encoder.state_dict()], run.seen[0], strict=True))
    parameters = [looked_at[name] for module in run.modules for name, _ in module.named_parameters()]
    assert _same(parameters, without.training._averages)
    assert not _same(parameters, _parameters(without.training))


@pytest.mark.parametrize("patience", [2, 1000])
@pytest.mark.parametrize("done", [0, 2, 5, 7])
def test_a_validated_run_in_pieces_ends_where_an_uninterrupted_one_does(
    done: int, patience: int, tmp_path: Path
) -> None:
    recipe = Recipe(12, lr=0.2, average=0.5)
    whole = _Run(recipe, every=2, patience=patience)
    whole.training.run()
    before = _Run(recipe, every=2, patience=patience)
    while before.training.step_count < done:
        with before.training._own_state(), before.training._training_mode():
            before.training._step()
    torch.save(before.training.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for _ in range(2):  # a state serves again: no run writes into it
        after = _Run(recipe, every=2, patience=patience)
        torch.manual_seed(99)
        after.training.load_state_dict(state)
        assert after.training.run()
        assert before.figures + after.figures == whole.figures
        assert _same(after.state(), whole.state())
        assert after.training.losses == whole.training.losses
        assert after.training.step_count == whole.training.step_count


def test_an_adversarial_run_in_pieces_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    def make() -> tuple[Training, list[nn.Module]]:
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        vae = VAE(nn.Linear(2, 6), 2)
        guide = avbvi.AVBGuide(
            vae.model,
            sampler=avbvi.ConditionalSampler(6, hidden=(8,), context_hidden=()),
            adversary=avbvi.InnerProductAdversary(hidden=(8,)),
        )
        guide.setup(torch.ones(4, 6))
        elbo = avbvi.AdversarialELBO(
            steps=8, pretrain_steps=2, adversary_batch=4, schedule=avbvi.Schedule(polish=0.2, average=0.5)
        )
        parameters = [*guide.part("sampler").parameters(), *vae.parameters()]
        loader = _FreshPixels(torch.rand(10, 6), 4)
        recipe = Recipe(8, lr=1e-2)
        return Training(elbo, vae.model, guide, loader, parameters, recipe, seed=0, modules=[vae, guide]), [vae, guide]  # type: ignore[arg-type]

    def state(modules: list[nn.Module]) -> list[Tensor]:
        return [t.clone() for module in modules for t in module.state_dict().values()]

    whole, modules = make()
    start = state(modules)
    whole.run()
    end = state(modules)
    assert sum(not torch.equal(a, b) for a, b in zip(start, end, strict=True)) >= len(list(modules[1].parameters()))
    for done in (0, 3, 7):
        before, _ = make()
        while before.step_count < done:
            with before._own_state(), before._training_mode():
                before._step()
        torch.save(before.state_dict(), tmp_path / "state.pt")
        after, modules = make()
        after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        after.run()
        assert _same(state(modules), end)
        assert after.losses == whole.losses
    # The same run, left and taken up again in one process.
    pieces, modules = make()
    for _ in range(8):
        with pieces._own_state(), pieces._training_mode():
            pieces._step()
    assert _same(state(modules), end)


def test_errors() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, found 0"):
        Recipe(0)
    with pytest.raises(ValueError, match="lr must be positive"):
        Recipe(1, lr=0.0)
    with pytest.raises(ValueError, match=r"warm_up must be in \[0, 1\), found 1.0"):
        Recipe(1, warm_up=1.0)
    with pytest.raises(ValueError, match=r"average must be in \[0, 1\) or None, found 1.0"):
        Recipe(1, average=1.0)
    with pytest.raises(ValueError, match="Expected value argument"):  # of the likelihood, at the first step
        _training(Recipe(2), [torch.full((4, 6), 0.5)]).run()
    with pytest.raises(ValueError, match="loader gives no batch"):
        _training(Recipe(1), []).run()
    with pytest.raises(TypeError, match="seed must be an integer"):
        _training(Recipe(1), seed=0.5)  # type: ignore[arg-type]


def test_errors_of_a_validation() -> None:
    run = _Run(Recipe(2), every=1)
    with pytest.raises(TypeError, match="stopping must be an EarlyStopping, found int"):
        Validation(3, float)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="figure must be callable, found float"):
        Validation(run.stopping, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every must be at least 1, found 0"):
        Validation(run.stopping, float, 0)

    def training(stopping: EarlyStopping) -> Training:
        parameters = [p for module in run.modules for p in module.parameters()]
        model, guide, recipe = run.vae.model, run.encoder.guide, Recipe(2)
        validation = Validation(stopping, lambda: 1.0)
        return Training(Trace_ELBO(), model, guide, [], parameters, recipe, seed=0, validation=validation)

    with pytest.raises(ValueError, match=r"must keep all that is trained, found 2 parameters besides"):
        training(EarlyStopping(run.encoder))
    used = EarlyStopping(run.modules)
    used.update(1.0)
    with pytest.raises(ValueError, match=r"validation.stopping must be unused, found one of 1 figures"):
        training(used)
