"""Marginals of the AVB paper's Figure 4, by method: ``python -m benchmarks.marginals [--minutes 1] [--seed 0]``.

Fits of the default, the paper's recipe (five times as long), an autoregressive flow and both Gaussian guides, beside
500,000 transitions of HMC and exact draws of the Eight Schools posterior; the picture goes to ``docs/images``.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor

from avbvi.plots import kde_grid
from benchmarks.eight_schools import METHODS
from benchmarks.problems import EIGHT_SCHOOLS_PAPER
from benchmarks.report import IMAGES

DRAWS = 10_000
COLUMNS = {
    "default": "avbvi default",
    "paper-long": "AVB paper",
    "iaf": "IAF",
    "advi-meanfield": "mean-field ADVI",
    "advi-fullrank": "full-rank ADVI",
    "hmc-paper": "HMC, 500,000 steps",
    "exact": "exact",
}


def draws(method: str, seed: int, minutes: float) -> dict[str, Tensor]:
    """DRAWS draws of mu, tau and eta."""
    torch.set_num_threads(1)
    problem = EIGHT_SCHOOLS_PAPER
    if method == "exact":
        matrix = problem.exact(DRAWS, seed)
    else:
        matrix = problem.matrix(METHODS[method](problem, seed, minutes).sample(DRAWS))
    return {"mu": matrix[:, 0], "tau": matrix[:, 1], "eta": matrix[:, 2:]}


def main() -> None:
    """Fit all, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="wall time of each fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="fits at a time, one thread each")
    options = parser.parse_args()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        # The longest first.
        order = sorted(COLUMNS, key=lambda method: method != "paper-long")
        waiting = {method: pool.submit(draws, method, options.seed, options.minutes) for method in order}
        columns = {title: waiting[method].result() for method, title in COLUMNS.items()}
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / "benchmark_marginals.png"
    kde_grid(columns, panel_size=1.7).savefig(path)
    print(f"Picture saved to {path}")


if __name__ == "__main__":
    main()
