"""The code on the pages of the documentation runs: ``make docs`` asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI
from torch.distributions import constraints

import avbvi
from avbvi.simulations import Simulation
from models.decoders import FullyConnectedDecoder
from models.encoders import GaussianEncoder, MLPBody
from models.likelihoods import RelaxedBernoulliLikelihood
from models.vaes import VAE
from tests.page_code import ROOT, blocks, run, shorten

DOCS = ROOT / "docs"
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("index", "install", "plots", "speed", "distributed"))]
PAGES += sorted(str(page.relative_to(ROOT)) for folder in ("howto", "theory") for page in (DOCS / folder).glob("*.md"))
PAGES.remove("docs/howto/mistakes.md")  # code that fails, as it should: tests/test_mistakes.py
PAGES = [page for page in PAGES if blocks((ROOT / page).read_text("utf-8"))]


def model(y: torch.Tensor, sigma: torch.Tensor) -> None:
    """Means of groups about a common one, as README's model might be."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def autoencoder() -> dict[str, Any]:
    """What a page means by its VAE, data and loader."""
    decoder = FullyConnectedDecoder(latent_dim=2, image_shape=(1, 8, 8), hidden=(16,))
    vae = VAE(decoder, latent_dim=2, likelihood=RelaxedBernoulliLikelihood())
    data = torch.bernoulli(torch.full((40, 64), 0.3))
    encoder = GaussianEncoder(MLPBody(64, (16,)), latent_dim=2)
    return {"vae": vae, "encoder": encoder, "x": data[:8], "loader": avbvi.TensorLoader(data, batch_size=20)}


def readme() -> dict[str, Any]:
    y, sigma = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([1.0, 0.5, 1.5])
    names = autoencoder()
    return {
        **names,
        "model": model,
        "args": (y, sigma),
        "y": y,
        "sigma": sigma,
        "batches": [x for (x,) in names["loader"]],
    }


def distributed() -> dict[str, Any]:
    names = autoencoder()
    guide = avbvi.AVBGuide(names["vae"].model, sampler=avbvi.SemiImplicitSampler(context_dim=64))
    return {**names, "guide": guide}


def plots() -> dict[str, Any]:
    """Axes, draws and fits, a few steps long, of which the page of plots shows one line each."""
    sites = {"z": (constraints.real, (2,)), "tau": (constraints.real, ())}
    density = avbvi.LogDensity(lambda v: -0.5 * (v["z"].square().sum(-1) + v["tau"].square()), sites=sites)
    posterior = avbvi.fit(density, guide=avbvi.AVBGuide(density, trunk=avbvi.AffineTrunk()), steps=10, progress=False)
    names = autoencoder()
    guide = avbvi.AVBGuide(names["vae"].model, sampler=avbvi.SemiImplicitSampler(context_dim=64))
    amortised = avbvi.fit(names["vae"].model, names["loader"], guide=guide, steps=5, progress=False)
    draws = {name: torch.randn(100, *shape) for name, shape in (("mu", ()), ("tau", ()), ("eta", (2,)))}
    rounds = tuple(Simulation(i, {}, {"mu": i % 10}, None, None, 1.0) for i in range(40))
    axes = Figure().subplots(1, 8)
    return {
        **dict(zip(("ax", "left", "right", "one", "two", "three", "above", "below"), axes, strict=True)),
        **{
            "posterior": posterior,
            "target": posterior.guide.target(),
            "amortised": amortised,
            "x": names["x"].reshape(8, 8, 8),
        },
        **{"truth": draws, "exact": draws, "gaussian": draws, "losses": [3.0, 2.0, 1.0], "labels": torch.arange(8)},
        **{"log_prob": lambda z: -0.5 * z.square().sum(-1), "before": torch.randn(50, 2), "after": torch.randn(50, 2)},
        **{"reconstructions": torch.rand(8, 8, 8), "samples": torch.rand(24, 8, 8)},
        "study": avbvi.Calibration(rounds, 9, {}, 0),
    }


def relatives() -> dict[str, Any]:
    return {**autoencoder(), "steps": 5}


def speed() -> dict[str, Any]:
    args = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([1.0, 0.5, 1.5])
    guide, elbo = avbvi.AVBGuide(model), avbvi.AdversarialELBO(steps=5)
    svi = SVI(model, guide, elbo.optimizer(lr=2e-3), loss=elbo)
    return {"guide": guide, "svi": svi, "steps": 5, "args": args}


#: What pages speak of without making it.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": readme,
    "docs/distributed.md": distributed,
    "docs/plots.md": plots,
    "docs/speed.md": speed,
    "docs/theory/relatives.md": relatives,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::tqdm.TqdmWarning")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = GIVEN[page]() if page in GIVEN else {}
    run(ROOT / page, {**shorten(monkeypatch), **given})


def test_blocks_are_found_with_their_lines_and_fragments_left_out() -> None:
    text = "a\n```python\nx = 1\n```\n<!-- fragment: why -->\n```python\nno\n```\n\n=== tab\n"
    text += "\n    ```python\n    y = x\n    ```\n"
    assert blocks(text) == [(2, "x = 1\n"), (12, "y = x\n")]


def test_a_broken_block_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nx.nothing\n```\n")
    with pytest.raises(AttributeError) as error:
        run(page, {})
    assert error.traceback[-1].lineno + 1 == 6


def test_fits_are_short_and_loops_end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    names = shorten(monkeypatch)
    assert [len(names["range"](5000)), list(names["range"](2, 4))] == [5, [2, 3]]
    target = avbvi.LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(1,))
    assert avbvi.fit(target, steps=3000, seed=0, progress=False).run.steps == 10
