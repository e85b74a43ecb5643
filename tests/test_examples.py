"""The examples run from a shell, for a few steps, and leave their pictures."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

REPOSITORY = Path(__file__).resolve().parents[1]


def run(script: str, *options: str, folder: Path, launcher: tuple[str, ...] = ()) -> str:
    """Run an example in an empty folder; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, str(REPOSITORY / "examples" / script), *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_picture(file: Path) -> None:
    pixels = imread(file)[..., :3]
    assert min(pixels.shape[:2]) > 300
    assert float(np.ptp(pixels)) > 0.5  # something dark on something light
    assert 0.01 < float((pixels.min(-1) < 0.9).mean()) < 0.9


@pytest.mark.parametrize("problem", ["paper", pytest.param("classic", marks=pytest.mark.slow)])
def test_eight_schools(problem: str, tmp_path: Path) -> None:
    options = ["--classic"] if problem == "classic" else []
    printed = run("eight_schools.py", "--steps", "30", "--out", "picture.png", *options, folder=tmp_path)
    check_picture(tmp_path / "picture.png")
    assert "verdict: " in printed
    assert ("eta[7]" in printed, "theta[7]" in printed) == (True, problem == "classic")
    assert ("-12.7108" if problem == "paper" else "-31.3113") in printed
    assert ("P(tau > 0)" in printed) == (problem == "paper")
    assert "picture.png" in printed


@pytest.mark.slow
def test_eight_schools_by_the_clock(tmp_path: Path) -> None:
    run("eight_schools.py", "--minutes", "0.02", folder=tmp_path)
    check_picture(tmp_path / "eight_schools.png")


@pytest.mark.parametrize(
    "density",
    ["ring", pytest.param("banana", marks=pytest.mark.slow), pytest.param("two_moons", marks=pytest.mark.slow)],
)
def test_log_density(density: str, tmp_path: Path) -> None:
    printed = run("log_density.py", "--density", density, "--steps", "40", folder=tmp_path)
    check_picture(tmp_path / "log_density.png")
    evidence = {"ring": "2.2460", "banana": "2.5310", "two_moons": "1.8775"}
    assert evidence[density] in printed


def test_report(tmp_path: Path) -> None:
    printed = run("report.py", "--steps", "30", "--out", "page.html", folder=tmp_path)
    assert "page: page.html" in printed
    assert "<h1>Eight Schools</h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_pyro_svi(tmp_path: Path) -> None:
    printed = run("pyro_svi.py", "--steps", "30", folder=tmp_path)
    assert "final ELBO" in printed
    assert printed.splitlines()[-1].split()[:2] == ["10", "22"]


def test_judge(tmp_path: Path) -> None:
    printed = run("judge.py", "--steps", "30", folder=tmp_path)
    assert "the draws moved" in printed  # of a fit of 30 steps
    assert "largest R-hat 1.00" in printed
    (mine,) = (line for line in printed.splitlines() if line.startswith("avbvi"))
    (gaussian,) = (line for line in printed.splitlines() if line.startswith("full-rank ADVI"))
    # KL, its error, accuracy, its error, distance, its error.
    figures = [[float(word) for word in line[26:].replace("±", "").split()] for line in (mine, gaussian)]
    assert all(len(row) == 6 and 0.45 < row[2] <= 1.0 for row in figures)
    assert "elpd_loo" in printed


@pytest.mark.parametrize(
    "noise", [["--noise", "64"], pytest.param(["--coins", "--noise", "5"], marks=pytest.mark.slow)]
)
def test_own_sampler(noise: list[str], tmp_path: Path) -> None:
    printed = run("own_sampler.py", "--steps", "30", *noise, folder=tmp_path)
    assert "verdict:" in printed
    mu, tau = (line.split() for line in printed.splitlines()[-2:])
    assert (mu[0], tau[0]) == ("mu", "tau")
    assert mu[4:] == ["0.77", "±", "0.33"]  # the exact posterior's
    assert abs(float(mu[1]) - 0.77) < 0.5


def test_vae_digits(tmp_path: Path) -> None:
    printed = run("vae_digits.py", "--steps", "30", "--temperatures", "5", folder=tmp_path)
    check_picture(tmp_path / "vae_digits.png")
    assert "verdict: " in printed
    (evidence,) = (line for line in printed.splitlines() if line.startswith("log p(x) of 100 test digits:"))
    assert -64.0 < float(evidence.split(":")[1].split()[0]) < -20.0  # better than coins, worse than trained


@pytest.mark.slow
def test_relatives_digits(tmp_path: Path) -> None:
    printed = run("relatives_digits.py", "--steps", "30", "--temperatures", "5", folder=tmp_path)
    check_picture(tmp_path / "relatives_digits.png")
    for name in ("AVB", "AS-VAE"):
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{name}: log p(x) "))
        evidence, score = (part.split("±")[0].split()[-1] for part in line.split(", inception score "))
        assert -64.0 < float(evidence) < -20.0  # better than coins, worse than trained
        assert 1.0 < float(score) < 7.0  # unseen digits have 7.4


@pytest.mark.slow
def test_distributed_vae_alone_and_by_two_processes(tmp_path: Path) -> None:
    options = ("--steps", "15", "--batch-size", "32", "--checkpoint", "run.pt")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed = []
    for launcher, name in (((), "one"), (torchrun, "two")):
        (tmp_path / name).mkdir()
        printed.append(run("distributed_vae.py", *options, folder=tmp_path / name, launcher=launcher))
        assert {file.name for file in (tmp_path / name).iterdir()} == {"run.pt", "distributed_vae.pt"}
    one, two = ([line for line in text.splitlines() if "ELBO" in line] for text in printed)
    assert one == two  # to the digits printed
    assert ["processes: 1" in printed[0], "processes: 2" in printed[1]] == [True, True]
