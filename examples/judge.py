"""Is it right, and is it better than what I have? A fit judged against HMC, beside full-rank ADVI.

python examples/judge.py [--steps 3000] [--seed 0]
"""

import argparse

import pyro
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.optim import ClippedAdam
from torch import Tensor

import avbvi
from avbvi.divergences import sliced_wasserstein
from avbvi.export import import_arviz
from models.eight_schools import classic_model as model

DRAWS = 10_000


def matrix(draws: dict[str, Tensor]) -> Tensor:
    """Draws as (n, 10) in unconstrained coordinates, where the judges look at them."""
    return torch.cat([draws["mu"].reshape(-1, 1), draws["tau"].reshape(-1, 1).log(), draws["eta"].reshape(-1, 8)], 1)


def advi(steps: int, seed: int) -> dict[str, Tensor]:
    """Draws of Pyro's full-rank Gaussian guide."""
    pyro.set_rng_seed(seed)
    guide = AutoMultivariateNormal(model)
    svi = SVI(
        model, guide, ClippedAdam({"lr": 0.02, "lrd": 0.02 ** (1.0 / steps)}), Trace_ELBO(64, vectorize_particles=True)
    )
    for _ in range(steps):
        svi.step()
    return Predictive(model, guide=guide, num_samples=DRAWS, parallel=True)()


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge a fit.")
    parser.add_argument("--steps", type=int, default=3000, help="number of training steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    posterior = avbvi.fit(model, seed=options.seed, steps=options.steps)
    print(posterior.verdict, end="\n\n")

    # A few HMC steps from the fit's own draws: nothing moves if they are the posterior's.
    print(posterior.refine(), end="\n\n")

    # The truth, as far as HMC can tell: 500 chains, with R-hat.
    truth = avbvi.hmc_posterior(model, seed=options.seed)
    print(truth, end="\n\n")

    reference = matrix(truth.draws)
    print("against HMC                  k-NN KL(q, p)      classifier accuracy   sliced W2")
    for name, draws in (("avbvi", posterior.sample(DRAWS)), ("full-rank ADVI", advi(options.steps, options.seed))):
        x = matrix(draws)
        kl, accuracy = avbvi.knn_kl(x, reference), avbvi.classifier_two_sample_test(x, reference, max_epochs=20)
        print(f"{name:<26}{kl!s:>16}{accuracy!s:>25}{sliced_wasserstein(x, reference)!s:>18}")

    # What it means for prediction: leave-one-out cross-validation, by ArviZ.
    print("\n", import_arviz().loo(posterior.to_arviz()), sep="")


if __name__ == "__main__":
    main()
