"""Pictures of the run and its judges: training, importance weights, reliability, predictive checks, latent map."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..diagnostics import Reliability, pareto_smooth
from ..diagnostics.evidence import Evidence
from ..runs import Run
from .blocks import Picture, number
from .checks import PredictiveCheck
from .drawing import Scheme, bare, kernel_density, label, picture, window
from .latents import LatentFigures

#: Observations that are drawn one by one.
FEW = 40


def training(run: Run, elbo: float, log_evidence: float, exact: bool) -> Picture | None:
    """The ELBO along the run; ``None`` where nothing was recorded."""
    step, values = np.asarray(run.history["step"], dtype=float), np.asarray(run.history["elbo"], dtype=float)
    keep = np.isfinite(values)
    if keep.sum() < 2:
        return None
    stage = np.asarray(run.history["stage"], dtype=float)

    def draw(figure: Figure, scheme: Scheme) -> None:
        ax = figure.subplots()
        adversarial = step[stage > 0]
        if 0 < len(adversarial) < len(step):
            ax.axvspan(
                adversarial[0], adversarial[-1], color=scheme.shade, zorder=0, linewidth=0, label="adversarial stage"
            )
        thin = slice(None, None, max(1, len(step) // 800))
        ax.plot(step[keep][thin], values[keep][thin], color=scheme.fit, linewidth=0.7, alpha=0.7, label="one step")
        width = max(1, int(keep.sum()) // 50)
        smooth = np.convolve(values[keep], np.ones(width) / width, mode="valid")
        ax.plot(
            step[keep][width - 1 :][thin], smooth[thin], color=scheme.fit_strong, linewidth=1.6, label="moving average"
        )
        levels = [v for v in (elbo, log_evidence) if math.isfinite(v)]
        if math.isfinite(log_evidence):
            ax.axhline(log_evidence, color=scheme.faint, linestyle=":", linewidth=1.4, label="log-evidence by weights")
        if math.isfinite(elbo):
            kind = "a lower bound" if exact else "learned, no bound"
            ax.axhline(elbo, color=scheme.reference, linestyle="--", linewidth=1.2, label=f"final ELBO ({kind})")
        late = [*values[keep][keep.sum() // 4 :], *levels]
        low, high = min(np.quantile(late, 0.01), *levels, math.inf), max(np.quantile(late, 0.99), *levels, -math.inf)
        margin = 0.15 * (high - low) or 0.5
        ax.set_ylim(low - margin, high + margin)
        ax.set_xlim(step[0], max(step[-1], step[0] + 1.0))
        ax.set_xlabel("step")
        ax.set_ylabel("ELBO estimate (nats)")
        figure.legend(loc="outside upper left", ncols=3)

    final = f" to {number(elbo, 4)} at the end" if math.isfinite(elbo) else ""
    return picture(
        draw,
        (6.8, 3.0),
        f"The ELBO's estimate along {run.steps} steps, from {number(float(values[keep][0]), 4)}{final}.",
        "The ELBO's estimates along the run. The vertical range is that of its last three quarters; the estimate of "
        "one step is noisy, and its mean rises until the fit has converged.",
    )


def weights(evidence: Evidence) -> Picture | None:
    """Importance weights in order, with their smoothed tail."""
    if evidence.log_weights is None:
        return None
    lw = evidence.log_weights.double()
    lw = lw[torch.isfinite(lw)]
    if len(lw) < 25:
        return None
    smoothed, k_hat = pareto_smooth(lw)
    n = len(lw)
    raw, smooth = ((w * n).sort(descending=True).values.numpy() for w in (torch.softmax(lw, 0), smoothed.exp()))
    thin = np.unique(np.geomspace(1, n, 400).astype(int)) - 1

    def draw(figure: Figure, scheme: Scheme) -> None:
        ax = figure.subplots()
        ax.axhline(1.0, color=scheme.faint, linewidth=0.9, linestyle=":")
        ax.plot(thin + 1, raw[thin], "o", color=scheme.fit, markersize=3, label="weights")
        ax.plot(thin + 1, smooth[thin], color=scheme.reference, linewidth=1.4, label="Pareto-smoothed")
        ax.set_xscale("log")
        if raw[-1] > 0.0 and raw[0] > 1.5 * raw[-1]:
            ax.set_yscale("log")
        ax.set_xlabel("rank of the draw")
        ax.set_ylabel("weight × number of draws")
        ax.legend()

    return picture(
        draw,
        (5.2, 3.1),
        f"Importance weights of {n} draws by rank: the largest is {number(float(raw[0]), 3)} times the mean; k-hat "
        f"{number(k_hat, 2)}.",
        f"Importance weights p / q by the {evidence.weights_of}, relative to equal ones (dotted). Flat is good; k-hat, "
        f"the shape of the tail, is {number(k_hat, 2)} (below 0.7 is good).",
    )


def reliability_picture(reliability: Reliability) -> Picture:
    """How often a draw was the fit's against how probable the adversary called it."""
    full = reliability.counts > 0
    predicted, observed, counts = (
        x[full].double().cpu().numpy() for x in (reliability.predicted, reliability.observed, reliability.counts)
    )

    def draw(figure: Figure, scheme: Scheme) -> None:
        ax = figure.subplots()
        ax.plot([0.0, 1.0], [0.0, 1.0], color=scheme.faint, linewidth=0.9, linestyle=":")
        ax.plot(predicted, observed, color=scheme.fit_strong, linewidth=1.0)
        ax.scatter(predicted, observed, s=10.0 + 220.0 * counts / counts.sum(), color=scheme.fit, zorder=3)
        ax.set_xlim(-0.02, 1.02)
        ax.set_ylim(-0.02, 1.02)
        ax.set_aspect("equal")
        ax.set_xlabel("probability by the adversary")
        ax.set_ylabel("frequency of the fit's draws")

    return picture(
        draw,
        (3.9, 3.6),
        f"Reliability of the adversary on held-out draws: calibration error {number(reliability.error, 2)}.",
        f"Reliability of the adversary on held-out draws: on the dotted line its log q is right. The calibration error "
        f"is {number(reliability.error, 2)}; dots are as large as their share of the draws.",
    )


def predictive(check: PredictiveCheck) -> Picture:
    """Observations of a site beside their replications."""
    y, q = check.observed.double().numpy(), check.quantiles.double().numpy()
    each = len(y) <= FEW and check.size == len(y)

    def draw(figure: Figure, scheme: Scheme) -> None:
        ax = figure.subplots()
        if each:
            place = np.arange(len(y))
            ax.vlines(place, q[:, 0], q[:, 4], color=scheme.fit, linewidth=1.6, label="90 % of the replications")
            ax.vlines(place, q[:, 1], q[:, 3], color=scheme.fit, linewidth=5.0, label="50 %")
            ax.plot(place, y, "o", color=scheme.reference, markersize=5, label="observed")
            ax.set_xlabel(f"element of {label(check.name)}")
            ax.set_ylabel(label(check.name))
            ax.set_xlim(-0.7, len(y) - 0.3)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            _spread(ax, scheme, check)
        figure.legend(loc="outside upper left", ncols=3)

    inside = float(((y >= q[:, 0]) & (y <= q[:, 4])).mean())
    what = (
        "each observation and the central 90 and 50 % of its replications"
        if each
        else f"how its observations are distributed, beside {len(check.replications)} replications"
    )
    return picture(
        draw,
        (6.8, 2.8),
        f"Posterior predictive check of {check.name}: {inside:.0%} of the observations shown lie within the central 90 "
        "% of their replications.",
        f"{check.name}: {what}. {inside:.0%} of the {len(y)} observations shown lie within the central 90 %; "
        "as the data were used for the fit, more than 90 % is usual.",
    )


def _spread(ax: Axes, scheme: Scheme, check: PredictiveCheck) -> None:
    """Distribution over the elements of a site, of observations and of replications."""
    y, replications = check.observed.double().numpy(), check.replications.double().numpy()
    if check.discrete:
        values = np.unique(np.concatenate([y, *replications]))[:40]
        counts = np.array([[(r == v).mean() for v in values] for r in replications])
        low, middle, high = np.quantile(counts, [0.05, 0.5, 0.95], axis=0)
        ax.bar(values, middle, width=0.7, color=scheme.fit, alpha=0.6, label="replications")
        ax.vlines(values, low, high, color=scheme.fit_strong, linewidth=1.4, label="90 % of them")
        ax.plot(values, [(y == v).mean() for v in values], "o", color=scheme.reference, label="observed")
        ax.set_ylabel("share")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        low, high = window(y, replications.ravel())
        grid = np.linspace(low, high, 160)
        name: str | None = "replications"
        for r in replications:
            density = kernel_density(r, grid)
            if density is not None:
                ax.plot(grid, density, color=scheme.fit, linewidth=0.7, alpha=0.6, label=name)
                name = None
        density = kernel_density(y, grid)
        if density is not None:
            ax.plot(grid, density, color=scheme.reference, linewidth=1.8, label="observed")
        ax.set_xlim(low, high)
        ax.set_ylim(bottom=0.0)
        bare(ax)
    ax.set_xlabel(label(check.name))


def latent_map(latents: LatentFigures) -> Picture | None:
    """Posterior means of the data in the two most active coordinates; ``None`` for a single coordinate."""
    means = latents.means.double().numpy()
    if means.shape[1] < 2 or len(means) < 2:
        return None
    width = latents.within.double().numpy()[:2]

    def draw(figure: Figure, scheme: Scheme) -> None:
        ax = figure.subplots()
        ax.plot(means[:, 0], means[:, 1], "o", color=scheme.fit_strong, markersize=3, alpha=0.6, linewidth=0)
        centre = means.mean(0)
        ax.errorbar(
            centre[0], centre[1], xerr=width[0], yerr=width[1], color=scheme.reference, elinewidth=1.6, capsize=3,
            label="mean sd of q(z | x)",
        )  # fmt: skip
        ax.set_xlabel(label(latents.names[0]))
        ax.set_ylabel(label(latents.names[1]))
        ax.legend()

    return picture(
        draw,
        (4.8, 4.2),
        f"Means of q(z | x) of {len(means)} data in the two most active coordinates, {latents.names[0]} and "
        f"{latents.names[1]}.",
        f"Latent map: the mean of q(z | x) of each of {len(means)} data in the two most active coordinates; the cross "
        "is as wide as q(z | x) is on average.",
    )
