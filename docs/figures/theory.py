"""The figures of docs/theory: ``python docs/figures/theory.py [NAME ...]`` draws them in one to two minutes on a core.

Each function computes what it shows. The same seeds give the same pictures on the same machine.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

import avbvi

FOLDER = Path(__file__).resolve().parents[1] / "images"
#: Readable on white and on black, and told apart without red or green (Okabe and Ito's palette, a darker blue).
BLUE, ORANGE, GREY = "#3b8fd0", "#d55e00", "#808080"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": GREY,
    "axes.titlesize": 10,
    "font.size": 9,
    "legend.frameon": False,
    "legend.labelcolor": GREY,
    "svg.hashsalt": "avbvi",
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}
LogDensity = Callable[[Tensor], Tensor]


# -- a ring, by families ----------------------------------------------------------------------------------


def ring_log_prob(z: Tensor) -> Tensor:
    """A ring of radius 2 and width 0.2, unnormalised: (*batch, 2) -> (*batch,)."""
    radius = (z.square().sum(-1) + 1e-12).sqrt()
    return -0.5 * ((radius - 2.0) / 0.2).square()


def ring_log_z() -> float:
    """log of the integral of the ring's density, by the trapezium rule in the radius."""
    radius = torch.linspace(0.0, 5.0, 100_001, dtype=torch.float64)
    values = 2.0 * math.pi * radius * (-0.5 * ((radius - 2.0) / 0.2).square()).exp()
    return float(torch.trapezoid(values, radius).log())


def best_gaussian(log_prob: LogDensity, log_z: float, *, steps: int = 1500) -> tuple[MultivariateNormal, float]:
    """The Gaussian with the least KL(q, p) that Adam finds, and that KL in nats."""
    loc = torch.tensor([1.0, 1.0], requires_grad=True)
    factor = torch.eye(2).mul(0.5).requires_grad_()
    optimiser = torch.optim.Adam([loc, factor], lr=2e-2)

    def gaussian() -> MultivariateNormal:
        lower = factor.tril(-1) + torch.diag(factor.diagonal().abs())
        return MultivariateNormal(loc, scale_tril=lower)

    for _ in range(steps):
        q = gaussian()
        z = q.rsample((500,))
        optimiser.zero_grad()
        (q.log_prob(z) - log_prob(z)).mean().backward()
        optimiser.step()
    with torch.no_grad():
        q = gaussian()
        z = q.sample((200_000,))
        return q, float((q.log_prob(z) - log_prob(z)).mean()) + log_z


def ring() -> Figure:
    """A ring, the Gaussian of least KL(q, p), and a neural sampler trained by an adversary without any flow."""
    log_z = ring_log_z()
    gaussian, kl = best_gaussian(ring_log_prob, log_z)
    target = avbvi.LogDensity(ring_log_prob, event_shape=(2,))
    guide = avbvi.AVBGuide(target, trunk=avbvi.AffineTrunk())
    posterior = avbvi.fit(target, guide=guide, steps=2500, seed=0, progress=False)
    draws = posterior.sample(20_000, hmc_steps=0)["z"]
    # Exact draws, by the radius' distribution function.
    radius = torch.linspace(0.0, 5.0, 20_001)
    mass = (radius * (-0.5 * ((radius - 2.0) / 0.2).square()).exp()).cumsum(0)
    radii = torch.from_numpy(np.interp(torch.rand(20_000).numpy(), (mass / mass[-1]).numpy(), radius.numpy()))
    angles = 2.0 * math.pi * torch.rand(20_000)
    exact = torch.stack([radii * angles.cos(), radii * angles.sin()], -1).float()
    knn = avbvi.knn_kl(draws, exact)

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.3), sharex=True, sharey=True, layout="constrained")
        panels = [
            (axes[0], "posterior", exact, GREY),
            (axes[1], f"best Gaussian: KL(q, p) = {kl:.2f}", gaussian.sample((20_000,)), ORANGE),
            (axes[2], f"neural sampler: k-NN KL {knn.value:.2f} ± {knn.stderr:.2f}", draws, BLUE),
        ]
        for ax, title, z, colour in panels:
            z = z[:4000]
            ax.scatter(z[:, 0], z[:, 1], s=1.5, color=colour, alpha=0.5, linewidths=0, rasterized=True)
            ax.set(title=title, aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), xlabel="$z_1$")
        axes[0].set_ylabel("$z_2$")
    return figure


# -- a contrast far from q and one near to it --------------------------------------------------------------


def trained(q: MixtureSameFamily, r: Normal, *, seed: int, steps: int = 3000, batch: int = 256) -> LogDensity:
    """T of logistic loss on fresh draws of q and r, in coordinates in which r is standard."""
    torch.manual_seed(seed)
    adversary = avbvi.MLPAdversary((64, 64))
    adversary.build_for(1, 1)
    loss = avbvi.Logistic()
    optimiser = torch.optim.Adam(adversary.parameters(), lr=4e-3, betas=(0.5, 0.999))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    def t(z: Tensor) -> Tensor:
        return adversary(((z - r.loc) / r.scale)[..., None])

    for _ in range(steps):
        optimiser.zero_grad()
        loss.loss(t(q.sample((batch,))), t(r.sample((batch,)))).backward()
        optimiser.step()
        scheduler.step()
    return t


def contrast() -> Figure:
    """What T learns of log q - log r in 1-d, from equally many draws: r the prior, and r with q's moments."""
    q = MixtureSameFamily(
        Categorical(torch.tensor([0.5, 0.5])), Normal(torch.tensor([1.9, 2.3]), torch.tensor([0.08, 0.06]))
    )
    z = torch.linspace(1.4, 2.7, 800)
    outside = q.log_prob(z) < math.log(1e-3)
    held_out = q.sample((200_000,))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(8.4, 5.0), sharex=True, layout="constrained", height_ratios=(1, 1.6))
        contrasts = (("prior contrast", Normal(0.0, 1.0)), ("adaptive contrast", Normal(q.mean, q.stddev)))
        for column, (name, r) in zip(axes.T, contrasts, strict=True):
            t = trained(q, r, seed=0)
            with torch.no_grad():
                learned = t(z)
                error = float((q.log_prob(held_out) - r.log_prob(held_out) - t(held_out)).mean())
                rms = float((q.log_prob(held_out) - r.log_prob(held_out) - t(held_out)).square().mean().sqrt())
            densities(column[0], z, q, r, name)
            ratio(column[1], z, q.log_prob(z) - r.log_prob(z), learned, outside)
            column[1].set_title(f"under q: rms error {rms:.2f}, learned ELBO off by {error:+.2f}")
        axes[0, 0].set_ylabel("density")
        axes[1, 0].set_ylabel("nats")
        axes[1, 1].legend(loc="lower center")
        axes[0, 1].legend(loc="upper right")
    return figure


def densities(ax: Axes, z: Tensor, q: MixtureSameFamily, r: Normal, title: str) -> None:
    """q and r."""
    ax.plot(z, q.log_prob(z).exp(), color=BLUE, label="$q$")
    ax.plot(z, r.log_prob(z).exp(), color=ORANGE, linestyle="--", label="$r$")
    ax.set(title=title)


def ratio(ax: Axes, z: Tensor, exact: Tensor, learned: Tensor, outside: Tensor) -> None:
    """T* and T; grey where q has next to no draws."""
    ax.fill_between(z, 0, 1, where=outside.numpy(), transform=ax.get_xaxis_transform(), color=GREY, alpha=0.18, lw=0)
    ax.plot(z, exact, color=GREY, linewidth=3, alpha=0.7, label=r"$T^* = \log q - \log r$")
    ax.plot(z, learned, color=BLUE, label="$T$, learned")
    ax.set(xlabel="$z$", ylim=(-16, 7))


# -- the bias of nearest neighbours --------------------------------------------------------------------------


def sd_for_kl(kl: float, dim: int, *, narrow: bool) -> float:
    """s such that KL(N(0, s^2 I), N(0, I)) = kl in ``dim`` dimensions, below or above 1, by bisection."""
    low, high = (1e-6, 1.0) if narrow else (1.0, 1e3)
    for _ in range(200):
        middle = math.sqrt(low * high)
        value = 0.5 * dim * (middle**2 - 1.0 - 2.0 * math.log(middle))
        if (value > kl) == narrow:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def neighbours() -> Figure:
    """What k-NN reads of a KL of half a nat, by dimension and number of draws."""
    dims, sizes, kl = (1, 2, 3, 5, 10, 20, 40), (500, 5000), 0.5
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.1), sharey=True, layout="constrained")
        for ax, narrow in zip(axes, (True, False), strict=True):
            for size, colour, marker in zip(sizes, (ORANGE, BLUE), ("s", "o"), strict=True):
                means, errors = [], []
                for dim in dims:
                    s = sd_for_kl(kl, dim, narrow=narrow)
                    repeats = 10 if size < 1000 else 3
                    values = []
                    for seed in range(repeats):
                        generator = torch.Generator().manual_seed(seed)
                        x = s * torch.randn(size, dim, generator=generator, dtype=torch.float64)
                        y = torch.randn(size, dim, generator=generator, dtype=torch.float64)
                        values.append(avbvi.knn_kl(x, y).value)
                    means.append(float(np.mean(values)))
                    errors.append(float(np.std(values)))
                ax.errorbar(dims, means, errors, color=colour, marker=marker, ms=4, label=f"{size:,} draws of each")
            ax.axhline(kl, color=GREY, linestyle="--", label="exact")
            ax.axhline(0.0, color=GREY, linewidth=0.5)
            ax.set(xscale="log", xlabel="dimension", title=f"q too {'narrow' if narrow else 'wide'}, KL(q, p) = {kl}")
            ax.set_xticks(dims, [str(dim) for dim in dims])
            ax.minorticks_off()
        axes[0].set_ylabel("k-NN KL(q, p), nats")
        axes[0].legend()
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "theory_ring": ring,
    "theory_contrast": contrast,
    "theory_neighbours": neighbours,
}


def main(names: list[str]) -> None:
    """Draw the figures named, or all, into docs/images."""
    for name in names or list(FIGURES):
        torch.manual_seed(0)
        figure = FIGURES[name]()
        path = FOLDER / f"{name}.svg"
        with plt.rc_context(STYLE):
            figure.savefig(path, transparent=True, dpi=200, metadata={"Date": None})
        plt.close(figure)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
