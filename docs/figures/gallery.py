"""The gallery of avbvi.plots: ``python docs/figures/gallery.py`` draws docs/images/plots_*.png, two minutes on a core.

Each picture is drawn on a light and on a dark page. The same seeds give the same pictures on the same machine.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from PIL import Image
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import avbvi
from avbvi import plots
from avbvi.diagnostics import calibrate, moment_shift, move
from avbvi.simulations import Simulation
from models import eight_schools
from models.data import digits
from models.data.binarisation import StaticBinarisation
from models.data.loaders import loader
from models.decoders import FullyConnectedDecoder
from models.vaes import VAE

FOLDER = Path(__file__).resolve().parents[1] / "images"
DRAWS = 4000


# -- what is shown ----------------------------------------------------------------------------------------


def ring(z: Tensor) -> Tensor:
    """A ring of radius 2 and width 0.2, unnormalised: (*batch, 2) -> (*batch,)."""
    return -0.5 * ((z.square().sum(-1).add(1e-12).sqrt() - 2.0) / 0.2).square()


@cache
def ring_fit() -> avbvi.Posterior:
    """AVB without a flow, whose adversary is in force."""
    density = avbvi.LogDensity(ring, event_shape=(2,))
    return avbvi.fit(density, guide=avbvi.AVBGuide(density, trunk=avbvi.AffineTrunk()), steps=1200, seed=0)


def ring_log_evidence() -> float:
    """log of the ring's integral, by the trapezium rule in the radius."""
    radius = torch.linspace(0.0, 6.0, 100_001, dtype=torch.float64)
    return math.log(2.0 * math.pi * float(torch.trapezoid(radius * (-0.5 * ((radius - 2.0) / 0.2) ** 2).exp(), radius)))


@cache
def schools() -> dict[str, dict[str, Tensor]]:
    """The AVB paper's posterior exactly, and by a Gaussian guide."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    guide = AutoNormal(eight_schools.model)
    optimiser = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.02 ** (1.0 / 1000)})
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(eight_schools.model, guide, optimiser, elbo)
    schools.losses = [svi.step() for _ in range(1000)]  # type: ignore[attr-defined]
    drawn = Predictive(eight_schools.model, guide=guide, num_samples=DRAWS, parallel=True)()
    gaussian = {name: drawn[name].reshape(DRAWS, -1).squeeze(-1) for name in ("mu", "tau", "eta")}
    return {"exact": eight_schools.exact_posterior(DRAWS, seed=0), "mean-field ADVI": gaussian}


@cache
def vae_fit() -> tuple[VAE, avbvi.AmortisedPosterior, digits.Digits]:
    """A small VAE of digits with two latents, its encoder without a density."""
    torch.manual_seed(0)
    data = digits.load()
    vae = VAE(FullyConnectedDecoder(2, (1, 8, 8), hidden=(200, 200)), 2)
    guide = avbvi.AVBGuide(
        vae.model, sampler=avbvi.SemiImplicitSampler(context_dim=64), adversary=avbvi.JointAdversary((128, 128))
    )
    posterior = avbvi.fit(vae.model, loader(data.train, batch_size=128), guide=guide, seed=0, steps=1000)
    assert isinstance(posterior, avbvi.AmortisedPosterior)
    return vae, posterior, data


@cache
def study() -> avbvi.Calibration:
    """Ranks of a conjugate Gaussian's posterior, and of one with half its standard deviation."""
    generator = np.random.default_rng(0)
    rounds = []
    for i in range(400):
        truth = generator.normal()
        mean, sd = (truth + generator.normal()) / 2.0, math.sqrt(0.5)
        ranks = {
            name: int((mean + scale * sd * generator.normal(size=99) < truth).sum())
            for name, scale in (("right", 1.0), ("too narrow", 0.5))
        }
        rounds.append(Simulation(i, {}, ranks, None, None, 1.0))
    return avbvi.Calibration(tuple(rounds), 99, {}, 0)


# -- the pictures -----------------------------------------------------------------------------------------


def figure(width: float = 4.2, height: float = 3.4) -> Figure:
    """A figure of one panel or several."""
    return Figure(figsize=(width, height), layout="constrained")


def kde_grid(dark: bool) -> Figure:
    return plots.kde_grid(schools(), dark=dark)


def pair_grid(dark: bool) -> Figure:
    return plots.pair_grid(schools(), ["mu", "tau", ("eta", 0)], dark=dark)


def marginal(dark: bool) -> Figure:
    with plots.style(dark=dark):
        drawn = figure()
        sets = {name: draws["tau"] for name, draws in schools().items()}
        plots.marginal_panel(drawn.subplots(), sets, label=r"$\tau$")
    return drawn


def density(dark: bool) -> Figure:
    with plots.style(dark=dark):
        drawn = figure(3.8, 3.6)
        pyro.set_rng_seed(0)
        draws = ring_fit().sample(1500)["z"]
        plots.density_panel(drawn.subplots(), ring, (-3.0, 3.0, -3.0, 3.0), draws=draws, label="a ring, and draws")
    return drawn


def landscape(dark: bool) -> Figure:
    with plots.style(dark=dark):
        drawn = figure(4.8, 3.8)
        plots.landscape_panel(drawn.subplots(), ring_fit(), draws=800)
    return drawn


def contrast(dark: bool) -> Figure:
    with plots.style(dark=dark):
        drawn = figure(7.6, 3.6)
        left, right = drawn.subplots(1, 2)
        plots.contrast_panel(left, ring_fit())
        plots.contrast_marginal(right, ring_fit(), ("z", 0))
    return drawn


def training(dark: bool) -> Figure:
    with plots.style(dark=dark):
        drawn = figure(8.4, 3.6)
        left, right = drawn.subplots(1, 2)
        plots.training_curve(left, ring_fit(), log_evidence=ring_log_evidence())
        schools()
        plots.loss_curve(right, {"mean-field ADVI": schools.losses}, label="negative ELBO (nats)")  # type: ignore[attr-defined]
    return drawn


def judges(dark: bool) -> Figure:
    fit = ring_fit()
    target = fit.guide.target()
    assert target is not None
    pyro.set_rng_seed(0)
    found = calibrate(fit.guide, target)
    moved = move(fit.guide, target, chains=2000)
    with plots.style(dark=dark):
        drawn = figure(10.5, 3.3)
        one, two, three = drawn.subplots(1, 3)
        plots.importance_weights(one, found.log_weights)
        plots.reliability_diagram(two, found.reliability)
        plots.moment_shift_panel(three, moment_shift(moved.before, moved.after), ["z1", "z2"])
    return drawn


def latents(dark: bool) -> Figure:
    _, posterior, data = vae_fit()
    x = StaticBinarisation(seed=0)(data.test.intensities())
    pyro.set_rng_seed(0)
    with plots.style(dark=dark):
        drawn = figure(4.6, 4.4)
        plots.latent_map(drawn.subplots(), posterior.sample(3, x)["z"], data.test.labels)
    return drawn


def images(dark: bool) -> Figure:
    vae, posterior, data = vae_fit()
    x = StaticBinarisation(seed=0)(data.test.intensities())[:12]
    pyro.set_rng_seed(0)
    with torch.no_grad():
        rebuilt = vae.mean(posterior.sample(1, x)["z"][0]).reshape(-1, 8, 8)
        made_up = vae.mean(torch.randn(24, 2)).reshape(-1, 8, 8)
    with plots.style(dark=dark):
        drawn = figure(5.4, 2.4)
        above, below = drawn.subplots(2, 1)
        plots.reconstruction_panel(above, x.reshape(-1, 8, 8), rebuilt, label="digits, and their reconstructions")
        plots.image_panel(below, made_up, columns=12, label="samples")
    return drawn


def sbc(dark: bool) -> Figure:
    return plots.plot_sbc(study(), dark=dark)


PICTURES: tuple[Callable[[bool], Figure], ...] = (
    *(kde_grid, pair_grid, marginal, density, landscape, contrast, training, judges, latents, images, sbc),
)


def main() -> None:
    """Draw them all."""
    for picture in PICTURES:
        for dark in (False, True):
            path = FOLDER / f"plots_{picture.__name__}{'_dark' if dark else ''}.png"
            drawn = io.BytesIO()
            picture(dark).savefig(drawn, dpi=110)
            # 255 colours are enough for flat pictures, in a third of the bytes.
            Image.open(drawn).convert("RGB").quantize(255, dither=Image.Dither.NONE).save(path, optimize=True)
            print(f"{path.stat().st_size / 1024:6.1f} KiB  {path.name}", flush=True)


if __name__ == "__main__":
    main()
