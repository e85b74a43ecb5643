"""The examples in docstrings run, and give what they show."""

from __future__ import annotations

import doctest
import functools
import importlib
import pkgutil
import sys
from pathlib import Path

import pyro
import pytest

import avbvi
import avbvi.elbo as elbo_module
import avbvi.training as training_module
from avbvi.diagnostics import choose_stage, judge
from tests.public_names import public_names

PACKAGE = Path(avbvi.__file__).parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _with_examples() -> list[str]:
    """Modules whose source holds the prompt of an example."""
    return [info.name for info in pkgutil.walk_packages([str(PACKAGE)], "avbvi.") if ">>> " in _source(info.name)]


def _source(name: str) -> str:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


MODULES = _with_examples()


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write files
    # Fits are judged by few draws: it is the slowest of a fit of some steps.
    monkeypatch.setattr(training_module, "judge", functools.partial(judge, n=500))
    monkeypatch.setattr(elbo_module, "choose_stage", functools.partial(choose_stage, n=500))
    examples, prompts = _examples(name), _source(name).count(">>> ")
    runner = doctest.DocTestRunner(verbose=False, optionflags=FLAGS)
    for example in examples:
        example.globs["__name__"] = "__main__"  # a class that it defines is a user's, not one of avbvi's parts
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        runner.run(example, out=sys.stdout.write)
    assert sum(len(example.examples) for example in examples) == prompts, "an example stands where doctest finds none"
    assert runner.summarize(verbose=False).failed == 0


def _examples(name: str) -> list[doctest.DocTest]:
    return doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))


def test_a_wrong_example_fails() -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    runner = doctest.DocTestRunner(verbose=False, optionflags=FLAGS)
    runner.run(wrong, out=lambda _: None)
    assert runner.failures == 1


def test_examples_are_in_sections_that_the_reference_shows_as_code() -> None:
    """An indented block after "Examples:" or "Example:"; elsewhere ">>>" would be shown as a quotation."""
    astray = []
    for name, value in public_names().items():
        lines = (getattr(value, "__doc__", None) or "").splitlines()
        first = next((i for i, line in enumerate(lines) if line.lstrip().startswith(">>> ")), None)
        if first is not None and not any(line.strip() in ("Example:", "Examples:") for line in lines[:first]):
            astray.append(name)
    assert astray == []
