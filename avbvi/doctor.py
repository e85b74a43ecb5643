"""avbvi doctor: what is installed, what the arithmetic runs on, and whether a problem with a known answer is solved."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from .divergences import knn_kl
from .fitting import fit
from .loading import load
from .log_density import LogDensity
from .posterior import Posterior
from .reports import system
from .rng import seeded

#: Packages that only some features need, by the names that they are installed by.
OPTIONAL = {
    "faiss-cpu": "benchmarks",
    "jax": "benchmarks",
    "numpyro": "benchmarks",
    "scikit-learn": "examples, benchmarks",
    "zuko": "benchmarks",
}
LOG_Z = 3.0
STEPS, QUICK_STEPS = 3000, 200
DRAWS, QUICK_DRAWS = 20_000, 4000


@dataclass(frozen=True)
class Check:
    """One check: its name, whether it passed, what was found, and how long it took."""

    name: str
    passed: bool
    found: str
    seconds: float


def exact() -> MixtureSameFamily:
    """The problem: two Gaussians of unequal weight, scale and shape in two dimensions."""
    loc = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
    scale = torch.tensor([[0.5, 0.5], [0.5, 1.0]])
    return MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7])), Independent(Normal(loc, scale), 1))


def log_density(z: Tensor) -> Tensor:
    """The problem's unnormalised log-density (*batch, 2) -> (*batch,); its log-evidence is exactly 3."""
    value: Tensor = exact().log_prob(z) + LOG_Z
    return value


def examine(*, quick: bool, as_json: bool) -> int:
    """Print what is installed and the self-test; returns the exit status, 1 if a check failed.

    Args:
        quick: fewer steps and draws, with wider limits.
        as_json: print one JSON object instead of lines.
    """
    about = {"versions": system.versions(), "hardware": system.hardware(), "optional": _optional()}
    if not as_json:
        for title, entries in about.items():
            print(title)
            for name, value in entries.items():
                print(f"  {name:<14} {value}")
        print("self-test" + (", quick" if quick else ", about a minute"), flush=True)
    checks = []
    for check in _checks(quick):
        checks.append(check)
        if not as_json:
            print(
                f"  {'pass' if check.passed else 'FAIL'}  {check.name}: {check.found} ({check.seconds:.1f} s)",
                flush=True,
            )
    passed = all(check.passed for check in checks)
    if as_json:
        print(json.dumps({**about, "quick": quick, "checks": [asdict(c) for c in checks], "passed": passed}, indent=2))
    else:
        seconds = sum(check.seconds for check in checks)
        failed = sum(not check.passed for check in checks)
        print(f"all checks passed in {seconds:.0f} s" if passed else f"{failed} of {len(checks)} checks failed")
    return 0 if passed else 1


def _optional() -> dict[str, str]:
    """What is not needed for a fit: whether it is there, and what for."""
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), "not found")
    packages = {name: f"{system.version_of(name)} ({use})" for name, use in OPTIONAL.items()}
    return {"C++ compiler": f"{compiler} (fit(compile=True))", **packages}


def _checks(quick: bool) -> Iterator[Check]:
    """The checks, one after the other; those that need the fit are left out where it fails."""
    fits: list[Posterior] = []
    yield _timed("fit", lambda: _fit(quick, fits))
    if fits:
        posterior = fits[0]
        yield _timed("log-evidence", lambda: _evidence(posterior, quick))
        yield _timed("moments", lambda: _moments(posterior, quick))
        yield _timed("k-NN divergence", lambda: _divergence(posterior, quick))
        yield _timed("save and load", lambda: _files(posterior))
        yield _timed("report", lambda: _page(posterior))
    if torch.cuda.is_available():
        yield _timed("fit on the GPU", _fit_on_gpu)


def _timed(name: str, run: Callable[[], tuple[bool, str]]) -> Check:
    """A check with its time; an exception is a failure."""
    started = time.monotonic()
    try:
        with seeded(0):
            passed, found = run()
    except Exception as error:  # whatever is broken is to be reported
        passed, found = False, f"{type(error).__name__}: {error}"
    return Check(name, passed, found, time.monotonic() - started)


def _fit(quick: bool, fits: list[Posterior]) -> tuple[bool, str]:
    posterior = fit(
        LogDensity(log_density, event_shape=(2,)), seed=0, steps=QUICK_STEPS if quick else STEPS, progress=False
    )
    fits.append(posterior)
    verdict = posterior.verdict
    # A few steps may leave a doubt; they must not fail.
    return verdict.status == "ok" or (quick and verdict.status != "failed"), f"verdict {verdict.status}"


def _evidence(posterior: Posterior, quick: bool) -> tuple[bool, str]:
    elbo = posterior.elbo()
    limit = (0.2 if quick else 0.03) + 4.0 * elbo.stderr
    return abs(elbo.value - LOG_Z) < limit, f"ELBO {elbo}, exactly {LOG_Z:.0f}"


def _moments(posterior: Posterior, quick: bool) -> tuple[bool, str]:
    z, p = posterior.sample(QUICK_DRAWS if quick else DRAWS)["z"].double(), exact()
    mean, sd = p.mean.double(), p.variance.double().sqrt()
    error = float(((z.mean(0) - mean) / sd).abs().max())
    ratio = float((z.std(0) / sd).log().abs().max())
    limit = (0.1 if quick else 0.03) + 4.0 / math.sqrt(len(z))
    return max(error, ratio) < limit, f"means within {error:.3f} sd, log sds within {ratio:.3f}"


def _divergence(posterior: Posterior, quick: bool) -> tuple[bool, str]:
    n = QUICK_DRAWS if quick else DRAWS
    found = knn_kl(posterior.sample(n)["z"], exact().sample((n,)))
    return abs(found.value) < (0.2 if quick else 0.05) + 4.0 * found.stderr, f"KL(q, p) {found} by {n} draws of each"


def _files(posterior: Posterior) -> tuple[bool, str]:
    draws = posterior.sample(100)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fit.pt"
        posterior.save(path)
        size = path.stat().st_size / 2**20
        loaded = load(path, LogDensity(log_density, event_shape=(2,)))
    same = torch.equal(loaded.log_prob(draws), posterior.log_prob(draws))
    return same, f"log q {'is the same' if same else 'differs'} after loading, {size:.1f} MiB"


def _page(posterior: Posterior) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as folder:
        text = posterior.report(Path(folder) / "fit.html").read_text(encoding="utf-8")
    return text.startswith("<!DOCTYPE html>") and "Verdict:" in text, f"{len(text) / 2**20:.1f} MiB of HTML"


def _fit_on_gpu() -> tuple[bool, str]:
    posterior = fit(LogDensity(log_density, event_shape=(2,)), seed=0, steps=100, device="cuda", progress=False)
    finite = bool(torch.isfinite(posterior.sample(100)["z"]).all())
    return finite and posterior.guide.anchor.is_cuda, posterior.run.execution
