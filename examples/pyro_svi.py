"""The guide among Pyro's own tools: SVI, Predictive, and a hierarchical model of counts.

python examples/pyro_svi.py [--steps 2000]
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive
from torch import Tensor

from avbvi import AdversarialELBO, AVBGuide

# Failures and hours of operation (thousands) of ten pumps: Gaver and O'Muircheartaigh (1987).
FAILURES = torch.tensor([5.0, 1.0, 5.0, 14.0, 3.0, 19.0, 1.0, 1.0, 4.0, 22.0])
HOURS = torch.tensor([94.3, 15.7, 62.9, 126.0, 5.24, 31.4, 1.05, 1.05, 2.1, 10.5])


def model(hours: Tensor, failures: Tensor | None = None) -> None:
    """Each pump has its own failure rate; the rates come from one Gamma distribution, which is learned too."""
    shape = pyro.sample("shape", dist.Exponential(1.0))
    rate = pyro.sample("rate", dist.Gamma(0.1, 1.0))
    with pyro.plate("pumps", len(hours)):
        failure_rate = pyro.sample("failure_rate", dist.Gamma(shape, rate))
        pyro.sample("failures", dist.Poisson(failure_rate * hours), obs=failures)


def main() -> None:
    parser = argparse.ArgumentParser(description="AVBGuide with Pyro's SVI and Predictive.")
    parser.add_argument("--steps", type=int, default=2000, help="number of training steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pyro.set_rng_seed(options.seed)

    guide = AVBGuide(model)
    elbo = AdversarialELBO(steps=options.steps)
    svi = SVI(model, guide, elbo.optimizer(lr=2e-3), loss=elbo)
    for step in range(options.steps):
        loss = svi.step(HOURS, FAILURES)
        if step % max(options.steps // 10, 1) == 0:
            print(f"step {step:5d}   loss {loss:.2f}")
    print(f"final ELBO   {-svi.evaluate_loss(HOURS, FAILURES):.2f}\n")

    # What did the pumps' failure rates turn out to be, and what do they predict for the same hours?
    predictive = Predictive(model, guide=guide, num_samples=4000, parallel=True)
    draws = predictive(HOURS)
    rates, replicated = draws["failure_rate"].reshape(4000, -1), draws["failures"].reshape(4000, -1)
    levels = torch.tensor([0.05, 0.5, 0.95])
    print("pump   failures   hours   rate per 1000 h: 5 %, 50 %, 95 %   replicated failures: 5 %, 50 %, 95 %")
    for i in range(len(HOURS)):
        low, mid, high = rates[:, i].quantile(levels).tolist()
        r_low, r_mid, r_high = replicated[:, i].quantile(levels).tolist()
        print(
            f"{i + 1:4d}   {FAILURES[i]:8.0f}   {HOURS[i]:5.1f}   {low:13.3f} {mid:8.3f} {high:8.3f}"
            f"{r_low:18.0f} {r_mid:5.0f} {r_high:5.0f}"
        )


if __name__ == "__main__":
    main()
