"""The command: exit status, what it prints, and no traceback for what a user can put right."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import avbvi
from avbvi import doctor
from avbvi.command import main
from avbvi.doctor import LOG_Z, exact, log_density

MODULE = """
import avbvi
def density(z):
    return -0.5 * z.square().sum(-1)
model = avbvi.LogDensity(density, event_shape=(1,))
pair = (model,)
number = 3
"""


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fit of a model in a module of the working folder, saved without what a report needs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "given_model.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "given_model", raising=False)
    from given_model import model  # type: ignore[import-not-found]

    path = tmp_path / "fit.pt"
    avbvi.fit(model, seed=0, steps=10, progress=False).save(path, report=False)
    return path


def test_the_problem_s_evidence_is_what_it_says() -> None:
    side = torch.linspace(-6.0, 7.0, 801, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1)
    mass = log_density(grid).exp().sum() * (side[1] - side[0]) ** 2
    assert float(mass.log()) == pytest.approx(LOG_Z, abs=1e-6)
    assert exact().mean.tolist() == pytest.approx([0.8, 0.7])


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"avbvi {avbvi.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["report"], ["doctor", "--slow"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: avbvi" in capsys.readouterr().err


def test_reports_of_what_is_no_fit(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pt").write_text("no fit")
    torch.save({"format": "avbvi-checkpoint", "version": 3}, tmp_path / "run.pt")
    (tmp_path / "half.pt").write_bytes(saved.read_bytes()[:2000])
    (tmp_path / "fit.html").write_bytes(saved.read_bytes())
    for arguments, status, words in (
        (["none.pt"], 2, "no file 'none.pt'"),
        ([str(tmp_path)], 2, "is a folder"),
        (["text.pt"], 1, "damaged or was not written by avbvi"),
        (["half.pt"], 1, "damaged"),
        (["run.pt"], 1, "is no avbvi-posterior file (found 'avbvi-checkpoint')"),
        (["fit.pt", "--out", "out.txt"], 2, "must end in .html"),
        (["fit.pt", "--out", "none/out.html"], 1, "create it first"),
        (["fit.html"], 2, "would replace the fit 'fit.html'"),
        (["fit.pt", "--model", "given_model"], 2, "must be MODULE:NAME"),
        (["fit.pt", "--model", "no_such_module:model"], 2, "can't be imported"),
        (["fit.pt", "--model", "given_model:nothing"], 2, "has no attribute 'nothing'"),
        (["fit.pt", "--model", "given_model:number"], 2, "is a int; name a model"),
    ):
        assert main(["report", *arguments]) == status, arguments
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("avbvi: ")
        assert words in err
        assert "Traceback" not in err
    assert [path.name for path in tmp_path.glob("*.html")] == ["fit.html"]
    assert (tmp_path / "fit.html").read_bytes() == saved.read_bytes()


def test_a_report_with_and_without_the_model(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "fit.pt"]) == 0
    assert capsys.readouterr().out == "fit.html\n"
    page = saved.with_suffix(".html")
    assert "saved with report=False" in page.read_text(encoding="utf-8")
    assert main(["report", "fit.pt", "--out", "drawn.html", "--model", "given_model:pair", "--title", "A title"]) == 0
    drawn = page.with_name("drawn.html").read_text(encoding="utf-8")
    assert "<h1>A title</h1>" in drawn
    assert "Marginals and pairs" in drawn


def test_doctor_tells_what_it_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "QUICK_STEPS", 50)
    assert main(["doctor", "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    names = [check["name"] for check in found["checks"]]
    assert names[:6] == ["fit", "log-evidence", "moments", "k-NN divergence", "save and load", "report"]
    assert found["versions"]["PyTorch"] == torch.__version__


def test_doctor_notices_what_is_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "QUICK_STEPS", 20)
    # The fit's density is another than the one that its answers are compared with.
    monkeypatch.setattr(doctor, "log_density", lambda z: exact().log_prob(z - 1.0) + LOG_Z + 1.0)
    monkeypatch.setattr(doctor, "load", lambda *a: (_ for _ in ()).throw(RuntimeError("can't be read")))
    assert main(["doctor", "--quick"]) == 1
    out = capsys.readouterr().out
    for name in ("log-evidence", "moments", "k-NN divergence"):
        assert f"FAIL  {name}" in out, out
    assert "FAIL  save and load: RuntimeError: can't be read" in out
    assert "4 of 6 checks failed" in out


def test_the_module_is_the_command_too() -> None:
    done = subprocess.run([sys.executable, "-m", "avbvi", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"avbvi {avbvi.__version__}\n"


def test_importing_avbvi_imports_no_templates() -> None:
    code = "import sys, avbvi; print([m for m in ('jinja2', 'avbvi.reports', 'avbvi.command') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_command_is_declared() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["avbvi"].partition(":")
    assert getattr(importlib.import_module(module), function) is main
