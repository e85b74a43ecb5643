"""What avbvi says of a run: log lines at which level, bars that do not mix with them, and nothing printed."""

from __future__ import annotations

import ast
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from tqdm import tqdm

import avbvi
from avbvi import bars
from avbvi import training as training_module
from avbvi.errors import NonFiniteError

PACKAGE = Path(avbvi.__file__).parent
#: Modules of the command, whose output is what it is for.
COMMAND = {"command.py", "doctor.py", "__main__.py"}


def normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1)


def quick_fit(**options: object) -> avbvi.Posterior:
    model = avbvi.LogDensity(normal, event_shape=(2,))
    guide = avbvi.AVBGuide(
        model,
        trunk=avbvi.AffineTrunk(),
        sampler=avbvi.MLPSampler((4,)),
        adversary=avbvi.MLPAdversary((4,)),
    )
    elbo = avbvi.AdversarialELBO(num_particles=16, pretrain_steps=1)
    settings = {"seed": 0, "steps": 20, "progress": False, **options}
    return avbvi.fit(model, guide=guide, elbo=elbo, **settings)  # type: ignore[arg-type]


def test_nothing_in_the_library_prints() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if path.name not in COMMAND
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not found


def test_loggers_are_named_after_their_modules() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made = isinstance(node, ast.Assign) and "getLogger" in ast.unparse(node.value)
            if made and path.name != "bars.py":
                assert ast.unparse(node.value) == "logging.getLogger(__name__)", path


def test_a_program_without_logging_sees_nothing() -> None:
    code = "import logging, avbvi; logging.getLogger('avbvi.training').warning('lost')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "lost" not in done.stderr


def test_a_verdict_in_doubt_is_a_warning_and_a_good_one_is_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for status, level in (("ok", "INFO"), ("suspect", "WARNING"), ("failed", "WARNING")):
        monkeypatch.setattr(
            training_module, "judge", lambda *a, status=status, **k: avbvi.Verdict(status, ["the reason"])
        )
        caplog.clear()
        with caplog.at_level(logging.INFO, "avbvi"):
            quick_fit()
        (record,) = (r for r in caplog.records if "verdict" in r.getMessage())
        assert (record.levelname, record.name) == (level, "avbvi.training")
        assert f"{status}: the reason" in record.getMessage()


@pytest.fixture
def judged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_module, "judge", lambda *a, **k: avbvi.Verdict("ok", []))


@pytest.mark.usefixtures("judged_at_once")
def test_a_rollback_is_a_warning(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = iter([True])
    step = training_module.Trainer.step

    def fails_once(self: training_module.Trainer) -> float:
        if int(self.guide.step_count) == 10 and next(broken, False):
            raise NonFiniteError("the loss is NaN")
        return step(self)

    monkeypatch.setattr(training_module.Trainer, "step", fails_once)
    with caplog.at_level(logging.WARNING, "avbvi"):
        posterior = quick_fit()
    assert posterior.run.rollbacks == 1
    (record,) = caplog.records
    assert record.name == "avbvi.recovery"
    assert "the loss is NaN" in record.getMessage()


@pytest.mark.usefixtures("judged_at_once")
def test_the_stage_and_a_resumed_checkpoint_are_told(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    with caplog.at_level(logging.DEBUG, "avbvi"):
        quick_fit(checkpoint=path)
        assert "the adversarial stage begins" in caplog.text
        assert f"saved the run to {path} at step 20" in caplog.text
        caplog.clear()
        quick_fit(checkpoint=path)
    (resumed,) = (r for r in caplog.records if "resuming" in r.getMessage())
    assert resumed.levelname == "INFO"
    assert resumed.getMessage() == f"resuming {path} at step 20"


@pytest.mark.usefixtures("judged_at_once")
def test_without_a_bar_nothing_is_written(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quick_fit()
    assert capfd.readouterr() == ("", "")
    quick_fit(progress=True)
    assert "ELBO" in capfd.readouterr().err
    # tqdm reads its variables on import.
    code = "from avbvi.bars import progress_bar\nwith progress_bar(True, total=3) as bar:\n    bar.update()"
    for disabled in ("", "1"):
        environment = {**os.environ, "TQDM_DISABLE": disabled}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert ("1/3" in done.stderr) is (not disabled)


def test_log_lines_appear_above_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler(terminal)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    logger = logging.getLogger("avbvi")
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, handler])
    with bars.progress_bar(True, total=10, file=terminal, mininterval=0.0) as bar:
        bar.update(1)
        logging.getLogger("avbvi.training").warning("a line")
        logging.getLogger("avbvi.training").info("below the handler's level")
        bar.update(1)
    # The bar was cleared before the line, which stands alone.
    assert any(line.strip() == "avbvi.training a line" for line in terminal.getvalue().replace("\r", "\n").split("\n"))
    assert "below" not in terminal.getvalue()
    assert handler.stream is terminal
    assert not tqdm._instances or bar not in tqdm._instances


@pytest.mark.usefixtures("judged_at_once")
def test_a_fit_does_not_depend_on_the_bar() -> None:
    with_bar, without = (quick_fit(progress=shown).guide.state_dict() for shown in (True, False))
    assert with_bar.keys() == without.keys()
    assert all(torch.equal(with_bar[name], without[name]) for name in without)
