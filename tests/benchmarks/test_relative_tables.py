"""Tables of the relatives' board."""

from __future__ import annotations

from typing import Any

from benchmarks import relative_tables


def row(method: str, seed: int = 0, **figures: Any) -> dict[str, Any]:
    return {"target": "mnist", "method": method, "seed": seed, **figures}


RECORDS = [
    row("data", inception_score=9.8),
    row("as-vae-r", 0, ais=-81.0, inception_score=6.0),
    row("as-vae-r", 1, ais=-82.0, inception_score=6.2),
    row("as-vae-r", 2, ais=-99.0, inception_score=6.4),
    row("as-vae", ais=-85.0, inception_score=7.0, rmse=0.2),
    row("as-vae-g", ais=-140.0, inception_score=8.0),
    {**row("ali"), "error": "ValueError: lost"},
    {**row("dcgan", ais=-1.0), "target": "digits"},
]


def test_a_row_per_method_beside_the_published_figures() -> None:
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in relative_tables.table(RECORDS, "mnist").splitlines()
    ]
    table = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert list(table) == ["held-out pictures", "AS-VAE-r", "AS-VAE-g", "AS-VAE", "ALI"]
    assert table["AS-VAE-r"]["log p(x), AIS"] == "-82.00 (-99.00 to -81.00)"
    assert table["AS-VAE-r"]["published"] == "81.14"
    assert table["held-out pictures"] == {
        **dict.fromkeys(lines[0], "-"), "method": "held-out pictures", "score of draws": "9.80",
    }  # fmt: skip
    assert table["ALI"]["remarks"] == "failed 1 x: ValueError: lost"
    assert "bits per dimension" not in lines[0]  # nobody has any
    assert "published" not in relative_tables.table(RECORDS, "digits")


def test_the_order_is_that_of_medians_and_compared_with_the_papers() -> None:
    likelihood, samples = relative_tables.order(RECORDS, "mnist").splitlines()
    assert likelihood == (
        "By likelihood, best first: AS-VAE-r -82.00, AS-VAE -85.00, AS-VAE-g -140.00: the paper's order."
    )
    assert samples.endswith("AS-VAE-g 8.00, AS-VAE 7.00, AS-VAE-r 6.20: the paper's order.")
    worse = [*RECORDS, row("as-vae", 1, ais=-70.0, inception_score=1.0), row("as-vae", 2, ais=-75.0)]
    likelihood, samples = relative_tables.order(worse, "mnist").splitlines()
    assert likelihood.endswith("AS-VAE -75.00, AS-VAE-r -82.00, AS-VAE-g -140.00: not the paper's order.")
    assert samples.endswith("AS-VAE-r 6.20, AS-VAE 4.00: not the paper's order.")


def test_without_annealing_the_bound_gives_the_order_and_without_a_half_there_is_none() -> None:
    bounds = [row(method, elbo_exact=-float(i)) for i, method in enumerate(relative_tables.BY_LIKELIHOOD)]
    (line,) = relative_tables.order(bounds, "mnist").splitlines()
    assert "AS-VAE-r -0.00, AS-VAE -1.00, AS-VAE-g -2.00: the paper's order" in line
    assert relative_tables.order(bounds[:2], "mnist") == ""
