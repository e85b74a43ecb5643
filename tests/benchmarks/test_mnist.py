"""The MNIST board, on pictures made here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import mnist, record
from benchmarks.image_models import AVB
from benchmarks.mnist import Options
from benchmarks.pieces import Clock
from models.data.images import Images, Split

OPTIONS = Options(methods=("vae",), steps=2, test_images=3, temperatures=3)


@pytest.fixture(autouse=True)
def _made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of noise, and files in a folder of the test."""
    split = Split(*(Images(torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8)) for n in (130, 12)))
    monkeypatch.setattr(mnist, "data", lambda folder: split)
    monkeypatch.setattr(mnist, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(mnist, "PICTURES", tmp_path)
    monkeypatch.setattr(mnist, "RESULTS", tmp_path / "results")


def test_the_command_line() -> None:
    options = mnist.read(
        ["--device", "cpu", "--targets", "table_3a", "table_2", "--test-images", "256", "--seeds", "3"]
    )
    assert (options.targets, options.test_images, options.seeds) == (("table_3a", "table_2"), 256, 3)
    assert options.temperatures == 1000
    assert options.steps_for("table_3a") == mnist.STEPS["cpu"]["table_3a"]
    assert replace(options, device="cuda:0").steps_for("table_3a") == mnist.STEPS["cuda"]["table_3a"]
    assert mnist.read(["--steps", "7"]).steps_for("table_2") == 7
    for wrong in (["--steps", "0"], ["--targets", "table_9"], ["--piece-minutes", "-1"]):
        with pytest.raises(SystemExit):
            mnist.read(wrong)


def test_the_decoders_are_the_papers() -> None:
    # 32-300-300-784 with biases.
    counts = {name: sum(p.numel() for p in make().parameters()) for name, make in mnist.DECODERS.items()}
    assert counts["table_3a"] == 33 * 300 + 301 * 300 + 301 * 784
    assert counts["table_3a"] < counts["table_3c"] < counts["table_2"]


def test_a_row_goes_on_where_a_piece_ended() -> None:
    with pytest.raises(KeyboardInterrupt):
        mnist.run("table_3a", "vae", 100, OPTIONS, Clock(0.0))
    row = mnist.run("table_3a", "vae", 100, OPTIONS, Clock())
    assert (row["test_images"], row["steps"], row["temperatures"]) == (3, 2, 3)
    assert row["elbo"] < 0.0
    # Training and annealing are done and read again: the same figures.
    again = mnist.run("table_3a", "vae", 100, OPTIONS, Clock(30.0))
    assert again["ais"] == row["ais"]
    assert again["train_seconds"] < row["train_seconds"] + 0.1
    kept = torch.load(mnist.evidence_file("table_3a", "vae", 100, OPTIONS), weights_only=True)
    assert float(kept.mean()) == pytest.approx(row["ais"])


def test_a_board_of_pieces(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[str, int]] = []

    def run(target: str, method: str, seed: int, options: Options, clock: Clock) -> dict[str, object]:
        asked.append((method, seed))
        if len(asked) == 2:
            clock._end = 0.0
            raise KeyboardInterrupt
        mnist.CACHE.mkdir(exist_ok=True)
        evidence = torch.tensor([-90.0, -80.0]) + (1.0 if method == AVB else 0.0)
        torch.save(evidence, mnist.evidence_file(target, method, seed, options))
        return {"target": target, "method": method, "seed": seed, "device": "cpu", "seconds": 1.0, "ais": -85.0,
                "ais_stderr": 0.1, "steps": 2, "test_images": 3, "temperatures": 3}  # fmt: skip

    monkeypatch.setattr(mnist, "run", run)
    command = ["--methods", "vae", AVB, "--steps", "2", "--test-images", "3", "--temperatures", "3"]
    with pytest.raises(SystemExit, match="call again"):
        mnist.main(command)
    records = mnist.main(command)
    assert asked == [("vae", 0), (AVB, 0), (AVB, 0)]  # the finished one was not run again
    assert [r["method"] for r in records] == ["vae", AVB]
    assert records[1]["ahead_of_vae"] == 1.0
    assert f"{AVB} beside the VAE: ahead" in capsys.readouterr().out
    content = json.loads((mnist.RESULTS / "mnist.json").read_text("utf-8"))
    assert len(content["records"]) == 2
    # Another device's rows stay.
    other = [{**r, "device": "cuda"} for r in content["records"]]
    record.save("mnist", other, mnist.RESULTS)
    assert len(mnist.main(command)) == 4
