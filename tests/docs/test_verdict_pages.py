"""The pages about verdicts say what the code says: limits, names of figures, messages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import avbvi
from avbvi.amortised import verdict as amortised
from avbvi.diagnostics import limits

ROOT = Path(__file__).resolve().parents[2]
READING, SUSPECT = ((ROOT / "docs" / "howto" / name).read_text("utf-8") for name in ("verdict.md", "suspect.md"))

#: Figure of the verdict -> what its row has to state as limits.
LIMITS = {
    "finite_share": [limits.FINITE_SHARE],
    "iterates_drift": [limits.DRIFT, limits.DRIFT_RHAT],
    "modes_misplaced": [limits.MODE_SHARES],
    "mean_shift": [limits.MEAN_SHIFT],
    "sd_ratio_narrow": list(limits.SD_RATIO),
    "jensen_shannon": [limits.JENSEN_SHANNON],
    "jeffreys": [limits.JEFFREYS],
    "energy_shift": [limits.ENERGY],
    "stein_error": [limits.STEIN],
    "cross_entropy_excess": [limits.CROSS_ENTROPY_EXCESS],
    "calibration_error": [limits.CALIBRATION_ERROR, limits.ROUGH_CALIBRATION_ERROR],
    "learned_kl_by_weights": [limits.LEARNED_KL_BY_WEIGHTS],
    "elbo_stderr": [limits.ELBO_STDERR],
    "kl_by_weights": [limits.KL_BY_WEIGHTS, limits.ELBO_EXCESS],
}


@pytest.mark.parametrize("figure", LIMITS)
def test_limits_on_the_page_are_those_of_the_code(figure: str) -> None:
    rows = [row for row in READING.splitlines() if row.startswith("|") and f"`{figure}`" in row]
    assert len(rows) == 1
    stated = {float(number) for number in re.findall(r"\d+\.?\d*", rows[0].rstrip("| ").rsplit("|", 1)[1])}
    assert set(LIMITS[figure]) <= stated


def test_limits_in_words() -> None:
    assert f"more than {limits.SKIPPED_SHARE:.0%}".replace("%", " %") in READING
    assert f"at least {limits.LEAST_MODE_WEIGHT:.0%}".replace("%", " %") in READING
    assert limits.LEAST_MODE_SHARE == 0.1
    assert "less than a tenth of its due" in READING
    assert limits.SIGMAS == 3.0
    assert "three of its standard errors" in READING
    assert f"limit {amortised.MISSED} nats a datum, above {amortised.MISSED_BY_FAR:.0f}" in READING


@pytest.mark.parametrize("flow", [True, False], ids=["default", "adversarial"])
def test_the_page_explains_every_figure(flow: bool) -> None:
    target = avbvi.LogDensity(lambda z: -0.5 * z.square().sum(-1) - 0.1 * z[..., 0] ** 4, event_shape=(2,))
    guide = None if flow else avbvi.AVBGuide(target, trunk=avbvi.AffineTrunk())
    figures = avbvi.fit(target, guide=guide, steps=10, seed=0, progress=False).verdict.figures
    assert len(figures) > 20
    missing = [name for name in figures if f"`{name}`" not in READING and not name.endswith("_stderr")]
    assert not missing


def literals() -> list[str]:
    """The literal parts of all strings in the package, joined where they stand side by side."""
    found = []
    for path in (ROOT / "avbvi").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def doubts() -> list[list[str]]:
    """The literal parts of each message that casts doubt on a fit."""
    found = []
    for path in ("diagnostics/verdict.py", "amortised/verdict.py"):
        for node in ast.walk(ast.parse((ROOT / "avbvi" / path).read_text("utf-8"))):
            named = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason"
            called = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".doubt")
            message = node.value if named else node.args[0] if called else None  # type: ignore[attr-defined]
            parts = message.values if isinstance(message, ast.JoinedStr) else [message]
            texts = [p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)]
            if texts:
                found.append(texts)
    return found


def test_the_page_has_every_doubt() -> None:
    messages = doubts()
    assert len(messages) > 20
    quoted = {
        part.strip() for q in re.findall(r'"([^"]+)"', SUSPECT) for part in q.split("...") if len(part.split()) > 1
    }
    assert not [texts for texts in messages if not any(part in text for part in quoted for text in texts)]


def test_messages_on_the_page_are_those_of_the_code() -> None:
    known = literals()
    quoted = [
        q for row in SUSPECT.splitlines() if row.startswith('| "') for q in re.findall(r'"([^"]+)"', row.split("|")[1])
    ]
    assert len(quoted) > 15
    parts = {part.strip() for message in quoted for part in message.split("...") if part.strip()}
    assert not [part for part in parts if not any(part in literal for literal in known)]
