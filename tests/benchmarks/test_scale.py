"""The board of judges at scale, on small sizes."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.spatial import cKDTree

from benchmarks import record, scale
from benchmarks.pieces import Clock
from benchmarks.scale import Linear, Notes, Options


@pytest.fixture(autouse=True)
def _made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(scale, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(scale, "IMAGES", {"cpu": 3})
    monkeypatch.setattr(scale, "TEMPERATURES", {"cpu": 4})
    monkeypatch.setattr(scale, "MOST_QUERIES", {"cpu": 700})
    monkeypatch.setattr(scale, "SLICE", {"cpu": 256})


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    options = scale.read(["--targets", "ais-linear", "knn-d10-n10000", "--methods", "full", "--piece-minutes", "3"])
    assert options.jobs() == [("knn-d10-n10000", "avbvi"), ("ais-linear", "full")]
    assert options.piece_minutes == 3.0
    assert ("ais-linear", "tf32") not in Options().jobs()
    assert ("ais-linear", "tf32") in Options("cuda:1").jobs()
    for wrong in (["--targets", "knn"], ["--piece-minutes", "0"], ["--device", "abacus"], ["--methods", "fp8"]):
        with pytest.raises(SystemExit):
            scale.read(wrong)


def test_neighbours_are_found_in_pieces_as_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(targets=("knn-d10-n10000",), folder=tmp_path)

    class Ticking(Clock):
        looks = 0

        @property
        def left(self) -> float:
            self.looks += 1
            return 1.0 if self.looks < 2 else 0.0

    with pytest.raises(KeyboardInterrupt):
        scale.neighbours("knn-d10-n10000", options, Ticking())
    assert len(torch.load(tmp_path / "knn-d10-n10000-cpu.pt")["rho"]) == 256
    resumed = scale.neighbours("knn-d10-n10000", options, Clock())
    assert not list(tmp_path.iterdir())
    whole = scale.neighbours("knn-d10-n10000", options, Clock())
    assert resumed["value"] == whole["value"]
    assert resumed["queries"] == 700
    # The estimate by a tree.
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(10_000, 10, generator=generator, dtype=torch.float64).numpy() for _ in range(2))
    rho, nu = cKDTree(x).query(x[:700], [4])[0], cKDTree(1.1 * y).query(x[:700], [3])[0]
    terms = 10.0 * torch.from_numpy(nu / rho).log().mean() + math.log(10_000 / 9_999)
    assert whole["value"] == pytest.approx(float(terms), rel=1e-10)
    assert whole["checked_error"] < 1e-12
    normal, wide = (torch.distributions.Normal(0.0, sd) for sd in (1.0, 1.1))
    assert whole["exact"] == pytest.approx(10.0 * float(torch.distributions.kl_divergence(normal, wide)), rel=1e-5)


def test_the_linear_decoders_evidence_is_the_integral_of_its_joint() -> None:
    density = Linear(4, "cpu")
    # log p(x) = log p(x, z) - log p(z | x) at any z.
    weight = density.weight.double()
    precision = torch.eye(32).double() + weight.mT @ weight / scale.NOISE**2
    loc = torch.linalg.solve(precision, (density.x.double() @ weight / scale.NOISE**2).mT).mT
    posterior = torch.distributions.MultivariateNormal(loc, precision_matrix=precision)
    z = loc + 0.1
    density.weight, density.x = density.weight.double(), density.x.double()
    torch.testing.assert_close(
        density.log_joint(z) - posterior.log_prob(z), density.log_evidence(), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("target", scale.AIS)
def test_annealed_rows_and_their_pieces(target: str, tmp_path: Path) -> None:
    options = Options(folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        scale.annealed(target, "full", options, Clock(0.0))
    row = scale.annealed(target, "full", options, Clock())
    # 5 chains, 4 temperatures, 10 leapfrog steps; products forward and back.
    macs = {"ais-mnist": 32 * 300 + 300 * 300 + 300 * 784, "ais-linear": 32 * 784}[target]
    assert row["flop"] == 4 * macs * 3 * 5 * 4 * 10
    assert row["flop_per_second"] == pytest.approx(row["flop"] / row["seconds"])
    assert math.isfinite(row["ais"])
    assert ("ais_error" in row) == (target == "ais-linear")
    low = scale.annealed(target, "bf16", options, Clock())
    assert low["ais"] != row["ais"]


def test_the_board_is_saved_and_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["--targets", "ais-linear", "--methods", "full"])
    rows = scale.main(["--targets", "knn-d10-n10000", "ais-linear", "--methods", "bf16"])
    assert [(row["target"], row["method"]) for row in rows] == [
        ("knn-d10-n10000", "avbvi"), ("ais-linear", "bf16"), ("ais-linear", "full"),
    ]  # fmt: skip
    saved = record.load(scale.NAME, scale.RESULTS)["records"]
    assert [row["target"] for row in saved] == [row["target"] for row in rows]
    assert all(row["peak_bytes"] is not None and row["commit"] for row in saved)
    assert "pairs_per_second" in capsys.readouterr().out
    assert not list(scale.CACHE.iterdir())


def test_quick_saves_nothing() -> None:
    scale.main(["--quick", "--targets", "knn-d30-n1000000", "ais-linear", "--methods", "full"])
    assert not scale.RESULTS.exists()


def test_notes_keep_what_the_library_says() -> None:
    logger = logging.getLogger("avbvi")
    before = logger.level
    with Notes() as notes:
        logger.info("no fast path: %s", "because")
    assert notes.lines == ["no fast path: because"]
    assert logger.level == before
    assert notes not in logger.handlers


def test_sizes_by_device() -> None:
    assert scale.sizes("knn-d30-n1000000", Options()) == (30, 10**6, 700)
    assert scale.sizes("knn-d30-n1000000", replace(Options(), quick=True)) == (30, 2000, 500)
