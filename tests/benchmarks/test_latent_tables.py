"""Tables of latent-variable models from made records."""

from __future__ import annotations

from benchmarks import latent_tables


def test_synthetic_table_has_medians_failures_and_the_published_figures() -> None:
    figures = {"elbo_exact": -1.4, "elbo_error": 0.001, "reconstruction_error": 0.002, "kl_aggregate": 0.01}
    records = [
        {"method": "avb", "seed": seed, "log_likelihood": value, "cpu_seconds_with_verdict": 60.0, **figures}
        for seed, value in enumerate((-1.39, -1.388, -1.395))
    ]
    records.append({"method": "avb", "seed": 3, "error": "FitFailed: it broke down"})
    records.append({"method": "vae", "seed": 0, "log_likelihood": -1.5675})
    header, _, vae, avb, *published = latent_tables.synthetic(records).splitlines()
    assert header.startswith("| method | log-likelihood | exact ELBO |")
    assert vae == "| Gaussian VAE | -1.5675 | - | - | - | - | - |"
    assert avb == (
        "| AVB (1 of 4 failed) | -1.3900 (-1.3950 to -1.3880) | -1.4000 (-1.4000 to -1.4000) "
        "| +0.0010 (+0.0010 to +0.0010) | 0.00200 (0.00200 to 0.00200) | 0.0100 (0.0100 to 0.0100) | 60 (60 to 60) |"
    )
    assert published == [
        "| VAE, as published | -1.568 | -1.697 | - | 0.0885 | 0.165 | - |",
        "| AVB, as published | -1.403 | -1.421 | - | 0.00577 | 0.026 | - |",
    ]


def test_linear_gaussian_table_has_the_errors_of_each_game() -> None:
    left = {"kl_data": 0.0012, "kl_posterior": 0.0003, "kl_aggregate": 0.0004, "cpu_seconds_with_verdict": 60.0}
    first, second = (
        {"error_f1_joint": 0.05, "error_f1_product": 0.06},
        {"error_f2_joint": 0.07, "error_f2_product": 0.08},
    )
    records = [
        {"method": "as-vae", "seed": 0, **left, **first, **second},
        {"method": "as-vae-r", "seed": 0, **left, **first},
        {"method": "as-vae-g", "seed": 0, **left, **second},
        {"method": "vae", "seed": 0, **left},
    ]
    rows = latent_tables.linear_gaussian(records).splitlines()[2:]
    kept = " 0.0012 | 0.0003 | 0.0004 |"
    assert rows == [
        f"| VAE |{kept} - | - | - | - | 60 |",
        f"| AS-VAE-r (eq. 8) |{kept} 0.050 | 0.060 | - | - | 60 |",
        f"| AS-VAE-g (eq. 9) |{kept} - | - | 0.070 | 0.080 | 60 |",
        f"| AS-VAE (eq. 11) |{kept} 0.050 | 0.060 | 0.070 | 0.080 | 60 |",
    ]
