"""What the papers say, beside what the boards measured: tables for ``docs/howto/reproduce.md``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.tables import Row, markdown, of, spread, values

#: For figures of which less is better.
LESS = float("-inf")


@dataclass(frozen=True)
class Statement:
    """A statement of a paper that one method is better than another by one figure.

    Args:
        text: the statement, and where the paper has it.
        published: the paper's figures, first against second.
        target: of the board.
        first, second: methods; the first is said to be better.
        key: the figure in the records.
        form: its format.
        best: the perfect value, distance from which counts; ``None`` where more is better, ``LESS`` where less is.
    """

    text: str
    published: str
    target: str
    first: str
    second: str
    key: str
    form: str
    best: float | None = None

    def worse(self, value: float) -> float:
        """How bad a value of the figure is."""
        if self.best is None:
            return -value
        return value if self.best == LESS else abs(value - self.best)


TABLE_1, FIGURE_3 = "one_hot_2x2", "eight_schools_paper"
NO_FIGURES = "a plot without figures"

#: By board.
STATEMENTS: dict[str, tuple[Statement, ...]] = {
    "eight_schools": (
        Statement(
            "AVB comes closer than full-rank ADVI (Figure 3); 5 minutes",
            NO_FIGURES,
            FIGURE_3,
            "paper-long",
            "advi-fullrank",
            "knn_kl_qp",
            ".2f",
            LESS,
        ),
        Statement(
            "AVB comes closer than mean-field ADVI (Figure 3); 5 minutes",
            NO_FIGURES,
            FIGURE_3,
            "paper-long",
            "advi-meanfield",
            "knn_kl_qp",
            ".2f",
            LESS,
        ),
        Statement(
            "the same as the first, after 60 seconds",
            NO_FIGURES,
            FIGURE_3,
            "paper",
            "advi-fullrank",
            "knn_kl_qp",
            ".2f",
            LESS,
        ),
        Statement(
            "adaptive contrast improves on the prior as contrast (section 5.1); 60 seconds",
            NO_FIGURES,
            FIGURE_3,
            "paper",
            "paper-prior-contrast",
            "knn_kl_qp",
            ".2f",
            LESS,
        ),
        Statement(
            "AVB holds both modes, ADVI one (Figure 4): P(tau > 0), exactly .5; 5 minutes",
            NO_FIGURES,
            FIGURE_3,
            "paper-long",
            "advi-fullrank",
            "p_tau_positive",
            ".2f",
            0.5,
        ),
    ),
    "synthetic_vae": (
        Statement("log-likelihood", "-1.403 / -1.568", TABLE_1, "avb", "vae", "log_likelihood", ".3f"),
        Statement(
            "reconstruction error", "0.00577 / 0.0885", TABLE_1, "avb", "vae", "reconstruction_error", ".4f", LESS
        ),
        Statement(
            "ELBO (the paper's of AVB is estimated)", "-1.421 / -1.697", TABLE_1, "avb", "vae", "elbo_exact", ".3f"
        ),
        Statement("KL(q(z), p(z))", "0.026 / 0.165", TABLE_1, "avb", "vae", "kl_aggregate", ".3f", LESS),
    ),
    "mnist": (
        Statement("log p(x) by AIS, against a VAE", "-83.7 / -85.0", "table_3a", "avb+ac", "vae", "ais", ".2f"),
        Statement(
            "the same, against auxiliary variables", "-83.7 / -83.8", "table_3a", "avb+ac", "aux-vae", "ais", ".2f"
        ),
        Statement("the same, against IAF", "-83.7 / -84.9", "table_3a", "avb+ac", "iaf-vae", "ais", ".2f"),
        Statement(
            "ELBO (the paper's of AVB is estimated, here it is exact)",
            "-85.1 / -88.9",
            "table_3a",
            "avb+ac",
            "vae",
            "elbo_exact",
            ".2f",
        ),
        Statement(
            "reconstruction (the paper's in nats a picture, here in nats a pixel)",
            "59.3 / 62.2",
            "table_3a",
            "avb+ac",
            "vae",
            "reconstruction_error",
            ".4f",
            LESS,
        ),
    ),
    "digits": tuple(
        Statement(
            f"log p(x) by AIS, AVB + AC against a VAE, {d} latents",
            "another data set",
            f"digits_{d}d",
            "avb+ac",
            "vae",
            "ais",
            ".2f",
        )
        for d in (2, 8, 16)
    ),
    "relatives": (
        Statement(
            "AS-VAE-r has a better likelihood than AS-VAE",
            "-81.14 / -82.51 (MNIST)",
            "digits",
            "as-vae-r",
            "as-vae",
            "ais",
            ".2f",
        ),
        Statement(
            "AS-VAE has a better likelihood than AS-VAE-g",
            "-82.51 / -146.32 (MNIST)",
            "digits",
            "as-vae",
            "as-vae-g",
            "ais",
            ".2f",
        ),
        Statement(
            "AVB has a better likelihood than AS-VAE",
            "-79.5 / -82.51 (MNIST)",
            "digits",
            "avb+ac",
            "as-vae",
            "ais",
            ".2f",
        ),
        Statement(
            "AS-VAE-g has better samples than AS-VAE",
            "6.89 / 6.34 (CIFAR-10)",
            "digits",
            "as-vae-g",
            "as-vae",
            "inception_score",
            ".2f",
        ),
        Statement(
            "AS-VAE has better samples than AS-VAE-r",
            "6.34 / 2.91 (CIFAR-10)",
            "digits",
            "as-vae",
            "as-vae-r",
            "inception_score",
            ".2f",
        ),
        Statement(
            "AS-VAE has better samples than DCGAN",
            "6.34 / 4.89 (CIFAR-10)",
            "digits",
            "as-vae",
            "dcgan",
            "inception_score",
            ".2f",
        ),
        Statement(
            "AS-VAE-r reconstructs better than AS-VAE (RMSE)",
            "3.17 / 3.36 (CIFAR-10)",
            "digits",
            "as-vae-r",
            "as-vae",
            "rmse",
            ".3f",
            LESS,
        ),
        Statement(
            "AS-VAE reconstructs better than ALI (RMSE)",
            "3.36 / 14.53 (CIFAR-10)",
            "digits",
            "as-vae",
            "ali",
            "rmse",
            ".3f",
            LESS,
        ),
    ),
}


def row(statement: Statement, records: Sequence[Row]) -> list[str]:
    """Statement, the paper's figures, ours (median and range over seeds), and whether it holds here.

    It does if it holds for the medians and on each seed that both methods have, and does not if on none of these.
    """
    rows = [
        [r for r in of(records, statement.target, method) if "error" not in r]
        for method in (statement.first, statement.second)
    ]
    first, second = (values(mine, statement.key) for mine in rows)
    if not first or not second:
        return [statement.text, statement.published, "-", "not run"]
    median_holds = statement.worse(statistics.median(first)) < statement.worse(statistics.median(second))
    by_seed = [{r["seed"]: float(r[statement.key]) for r in mine} for mine in rows]
    shared = sorted(set(by_seed[0]) & set(by_seed[1]))
    on_seeds = [statement.worse(by_seed[0][seed]) < statement.worse(by_seed[1][seed]) for seed in shared]
    here = f"{spread(first, statement.form)} / {spread(second, statement.form)}"
    said = [median_holds, *on_seeds]
    holds = "yes" if all(said) else "open" if any(said) else "no"
    return [statement.text, statement.published, here, f"{holds}; {sum(on_seeds)} of {len(shared)} seeds"]


def parts(name: str, records: Sequence[Row]) -> dict[str, str]:
    """The tables that a board's records make, by the names of their markers."""
    if name not in STATEMENTS:
        return {}
    header = ["statement", "paper", "here", "holds"]
    return {f"reproduced {name}": markdown(header, [row(statement, records) for statement in STATEMENTS[name]])}
