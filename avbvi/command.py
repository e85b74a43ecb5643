"""The command ``avbvi``: a self-test, and reports from files of fits.

avbvi doctor [--quick] [--json]
avbvi report FIT.pt [--out FIT.html] [--title TEXT] [--model MODULE:NAME]
avbvi --version

Exit status: 0 if all went well, 1 if the self-test failed or a file can't be read, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import CheckpointError, ModelError


class UsageError(Exception):
    """What a user asked for can't be done; the message says what to give instead."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Args:
        arguments: those of the command line, by default the process's own.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except UsageError as error:
        print(f"avbvi: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CheckpointError, ModelError, OSError) as error:
        print(f"avbvi: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("avbvi: interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(prog="avbvi", description="Adversarial variational Bayes for Pyro.")
    parser.add_argument("--version", action="version", version=f"avbvi {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    doctor = commands.add_parser(
        "doctor",
        help="versions, device, and a self-test of about a minute",
        description="Print versions and hardware, and fit a small problem whose answer is known. Exit status 1 if "
        "a check fails.",
    )
    doctor.add_argument("--quick", action="store_true", help="a self-test of a few seconds, with wider limits")
    doctor.add_argument("--json", action="store_true", help="print one JSON object, for machines")
    doctor.set_defaults(run=_doctor)

    report = commands.add_parser(
        "report",
        help="a self-contained HTML page about a saved fit",
        description="Write a report on a fit that posterior.save wrote. The model's code is not needed.",
    )
    report.add_argument("fit", metavar="FIT.pt", help="a file that posterior.save wrote")
    report.add_argument("--out", metavar="PAGE.html", help="the page to write; FIT.html beside the fit by default")
    report.add_argument("--title", help="of the page; the model's name by default")
    report.add_argument(
        "--model",
        metavar="MODULE:NAME",
        help="a model, or a tuple of a model and its arguments, to draw anew with: for files that hold no draws",
    )
    report.set_defaults(run=_report)
    return parser


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import examine

    return examine(quick=options.quick, as_json=options.json)


def _report(options: argparse.Namespace) -> int:
    from .loading import load
    from .reports.material import from_file
    from .reports.page import check_page, write_report

    fit = Path(options.fit)
    if fit.is_dir():
        raise UsageError(f"{str(fit)!r} is a folder; give a file that posterior.save wrote")
    if not fit.is_file():
        raise UsageError(f"no file {str(fit)!r}; give one that posterior.save wrote")
    try:
        out = check_page(fit.with_suffix(".html") if options.out is None else options.out, options.title)
    except ValueError as error:
        raise UsageError(f"--out: {error}") from error
    if out.exists() and out.samefile(fit):
        raise UsageError(f"the page would replace the fit {str(fit)!r}; give another --out")
    if options.model is None:
        page = write_report(from_file(fit), out, options.title)
    else:
        model, arguments = _model(options.model)
        page = load(fit, model, *arguments).report(out, title=options.title)
    print(page)
    return 0


def _model(name: str) -> tuple[Any, tuple[Any, ...]]:
    """The model that ``MODULE:NAME`` names, and its arguments; modules beside the caller are found too."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"--model must be MODULE:NAME, such as mymodels:regression, found {name!r}")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise UsageError(f"--model: {module_name!r} can't be imported ({type(error).__name__}: {error})") from error
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise UsageError(f"--model: {error}") from error
    model, arguments = (found[0], found[1:]) if isinstance(found, tuple) and found else (found, ())
    if not callable(model):
        raise UsageError(
            f"--model: {name!r} is a {type(model).__name__}; name a model, or a tuple of a model and its arguments"
        )
    return model, arguments
