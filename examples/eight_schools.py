"""Eight Schools: fit the posterior, judge it, and compare it with Gaussian guides and the exact answer.

python examples/eight_schools.py [--classic] [--steps N | --minutes M] [--seed 0] [--out eight_schools.png]
"""

import argparse
from collections.abc import Callable

import pyro
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.optim import ClippedAdam
from torch import Tensor

import avbvi
from avbvi.export import import_arviz
from avbvi.plots import kde_grid
from models import eight_schools

DRAWS = 10_000
GAUSSIAN_STEPS = 2000


def gaussian_draws(model: Callable[[], None], guide_class: type, steps: int, seed: int) -> dict[str, Tensor]:
    """Draws {site: (DRAWS, *shape)} of one of Pyro's Gaussian guides, fitted by the usual ELBO."""
    pyro.set_rng_seed(seed)
    guide = guide_class(model)
    optimiser = ClippedAdam({"lr": 0.02, "lrd": 0.02 ** (1.0 / steps)})  # the rate falls to a fiftieth
    elbo = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, optimiser, elbo)
    for _ in range(steps):
        svi.step()
    draws = Predictive(model, guide=guide, num_samples=DRAWS, parallel=True)()
    return {name: draws[name].reshape(DRAWS, -1) for name in ("mu", "tau", "eta")}


def main() -> None:
    parser = argparse.ArgumentParser(description="Eight Schools with adversarial variational Bayes.")
    parser.add_argument("--classic", action="store_true", help="Rubin's data with tau > 0, not the AVB paper's problem")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="number of training steps")
    length.add_argument("--minutes", type=float, help="training time by the clock, instead of steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="eight_schools.png", help="where the picture goes")
    options = parser.parse_args()

    if options.classic:
        model, log_evidence = eight_schools.classic_model, eight_schools.classic_exact_log_evidence()
        exact = eight_schools.classic_exact_posterior(DRAWS, seed=1)
    else:
        model, log_evidence = eight_schools.model, eight_schools.exact_log_evidence()
        exact = eight_schools.exact_posterior(DRAWS, seed=1)

    posterior = avbvi.fit(model, seed=options.seed, steps=options.steps, minutes=options.minutes)
    print(posterior.verdict, end="\n\n")

    pyro.set_rng_seed(options.seed)
    az = import_arviz()
    print(az.summary(posterior.to_arviz(), kind="stats"), end="\n\n")

    draws = posterior.sample(DRAWS)
    kind = "a lower bound" if posterior.elbo_is_exact else "learned, no bound"
    print(f"ELBO                 {posterior.elbo()}  ({kind})")
    print(f"exact log-evidence   {log_evidence:.4f}")
    if not options.classic:
        share = float((draws["tau"] > 0).float().mean())
        print(f"P(tau > 0)           {share:.3f}  (exactly 0.5: the posterior has two mirror modes)")

    gaussian_steps = min(GAUSSIAN_STEPS, options.steps or GAUSSIAN_STEPS)
    figure = kde_grid(
        {
            "AVB": draws,
            "mean-field ADVI": gaussian_draws(model, AutoNormal, gaussian_steps, options.seed),
            "full-rank ADVI": gaussian_draws(model, AutoMultivariateNormal, gaussian_steps, options.seed),
            "exact posterior": exact,
        }
    )
    figure.savefig(options.out)
    print(f"\nPicture saved to {options.out}")


if __name__ == "__main__":
    main()
