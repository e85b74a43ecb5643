"""Draws from a density of your own: a function that gives its logarithm, up to a constant, is enough.

python examples/log_density.py [--density ring | banana | two_moons] [--steps 2000] [--out log_density.png]
"""

import argparse

import torch
from matplotlib.figure import Figure
from torch import Tensor

import avbvi
from avbvi.plots import density_panel, style, training_curve
from models import toy_densities


def ring(z: Tensor) -> Tensor:
    """A ring of radius 2: points (*batch, 2) to unnormalised log-densities (*batch,)."""
    radius = z.square().sum(-1).sqrt()
    return -0.5 * ((radius - 2.0) / 0.3).square()


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw from an unnormalised density.")
    parser.add_argument("--density", choices=["ring", "banana", "two_moons"], default="ring")
    parser.add_argument("--steps", type=int, default=2000, help="number of training steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="log_density.png", help="where the picture goes")
    options = parser.parse_args()
    log_prob = {"ring": ring, "banana": toy_densities.banana, "two_moons": toy_densities.two_moons}[options.density]

    # These three lines are all it takes.
    density = avbvi.LogDensity(log_prob, event_shape=(2,))
    posterior = avbvi.fit(density, seed=options.seed, steps=options.steps)
    draws = posterior.sample(2000)["z"]

    log_evidence = toy_densities.quadrature_log_evidence(log_prob, -30.0, 30.0, 1001)
    print(posterior.verdict)
    print(f"ELBO           {posterior.elbo()}")
    print(f"log-evidence   {log_evidence:.4f}  (by quadrature)")

    with style():
        figure = Figure(figsize=(9.0, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
    reach = 1.25 * float(torch.quantile(draws.abs(), 0.999))
    density_panel(left, log_prob, (-reach, reach, -reach, reach), draws=draws, label="density and draws")
    left.set_aspect("equal")
    left.set_xlabel("$z_1$")
    left.set_ylabel("$z_2$")
    training_curve(right, posterior, log_evidence=log_evidence)
    figure.savefig(options.out)
    print(f"Picture saved to {options.out}")


if __name__ == "__main__":
    main()
