"""Build sdist and wheel, check what they hold, and use the wheel in a virtual environment of its own.

    python -m tests.package_check

This is what `make package` runs, from the root of the checkout. All is made in a temporary folder, outside the
checkout, that is removed at the end; the environment is filled with the versions in `constraints.txt`. The exit status
is 1 at the first check that fails. The check of types is left out, with a message, where pyright can't be had.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
#: Least share of public symbols whose type pyright knows, in per cent.
LEAST_TYPED = 99.0
#: What each sdist must have beside the package: all that its tests, its documentation and its users need.
IN_SDIST = (
    *("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Makefile", "constraints.txt"),
    *("pyproject.toml", "mkdocs.yml", "tests/conftest.py", "models/__init__.py", "benchmarks/__init__.py"),
    *("examples/eight_schools.py", "docs/index.md", "avbvi/__init__.py", "avbvi/py.typed"),
)
#: What a wheel's package may hold: sources, the marker of types, templates of reports.
IN_WHEEL = {".py", ".typed", ".html", ".j2", ".css", ".js", ".svg"}

FIT = """
import torch
import avbvi


def log_prob(z):
    return -0.5 * ((z.square().sum(-1).add(1e-12).sqrt() - 2.0) / 0.2) ** 2


posterior = avbvi.fit(avbvi.LogDensity(log_prob, event_shape=(2,)), steps=200, seed=0, progress=False)
radius = posterior.sample(2000)["z"].square().sum(-1).sqrt()
assert abs(radius.mean().item() - 2.0) < 0.3, radius.mean()
print(f"avbvi {avbvi.__version__}: verdict {posterior.verdict.status}, radius {radius.mean():.2f}")
"""
# No warning, no look at ArviZ (0.23 announces its successor at import), no change of global state.
IMPORT = """
import logging, random, sys
import torch


def state():
    generators = (torch.get_rng_state().tolist(), random.getstate())
    return (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), logging.root.level, generators)


before = state()
import avbvi

assert state() == before, "import avbvi changes global state"
assert not {"arviz", "models", "tests", "benchmarks"} & set(sys.modules), "an import too many"
assert "site-packages" in avbvi.__file__, avbvi.__file__
"""


class Failed(Exception):
    """A check found something; the message says what."""


def require(condition: object, message: str) -> None:
    """Raise :class:`Failed` unless ``condition``."""
    if not condition:
        raise Failed(message)


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Output of a command, standard error included; raises :class:`Failed` with it if the command fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    require(done.returncode == 0, f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def clean_environment(binaries: Path | None = None) -> dict[str, str]:
    """The environment without what would lead Python to this checkout; ``binaries`` come first on the path."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    own.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for one another are slow on a busy machine
    return own if binaries is None else {**own, "PATH": f"{binaries}{os.pathsep}{own.get('PATH', '')}"}


def contents(wheel: Path) -> dict[str, str]:
    """Digest of each file of a wheel, by its name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def build(folder: Path) -> tuple[Path, Path]:
    """An sdist and a wheel, built from that sdist in an environment of its own, as an installer would."""
    run(sys.executable, "-m", "build", "--outdir", folder, REPOSITORY, cwd=folder, env=clean_environment())
    sdists, wheels = list(folder.glob("*.tar.gz")), list(folder.glob("*.whl"))
    require(len(sdists) == 1 and len(wheels) == 1, f"expected one sdist and one wheel, found {sdists} and {wheels}")
    return sdists[0], wheels[0]


def check_sdist(sdist: Path, wheel: Path, folder: Path) -> str:
    """What the sdist holds, and that it and the checkout give the same wheel."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in IN_SDIST if name not in names]
    require(not missing, f"{sdist.name} lacks {missing}: see [tool.hatch.build.targets.sdist] in pyproject.toml")
    caches = [name for name in names if "__pycache__" in name or name.startswith((".venv", "site/"))]
    require(not caches, f"{sdist.name} has caches or build products: {caches[:5]}")
    direct = folder / "direct"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", direct, REPOSITORY, cwd=folder)
    same = contents(next(direct.glob("*.whl"))) == contents(wheel)
    require(same, "the checkout and the sdist build different wheels")
    return f"{len(names)} files, {sdist.stat().st_size / 2**20:.1f} MiB"


def check_wheel(wheel: Path) -> str:
    """The package alone, each of its modules, and nothing that is neither source nor template."""
    names = set(contents(wheel))
    tops = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    require(tops == {"avbvi"}, f"{wheel.name} installs {sorted(tops)}; only avbvi may be there")
    inside = {name for name in names if name.startswith("avbvi/")}
    strange = sorted(name for name in inside if Path(name).suffix not in IN_WHEEL)
    require(not strange, f"{wheel.name} has files that are neither source nor template: {strange}")
    here = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "avbvi").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    require(inside == here, f"{wheel.name} and the folder avbvi differ in {sorted(inside ^ here)}")
    require("avbvi/py.typed" in inside, f"{wheel.name} lacks avbvi/py.typed")
    licences = [name for name in names if name.endswith("licenses/LICENSE")]
    require(licences, f"{wheel.name} lacks the licence")
    return f"{len(names)} files, {wheel.stat().st_size / 2**20:.1f} MiB"


def version_of(wheel: Path) -> str:
    """The version in a wheel's name."""
    return wheel.name.split("-")[1]


def install(wheel: Path, folder: Path) -> str:
    """The wheel and what it needs, in a new virtual environment."""
    environment = folder / "venv"
    run(sys.executable, "-m", "venv", environment, cwd=folder, env=clean_environment())
    python = environment / "bin" / "python"
    constraints = REPOSITORY / "constraints.txt"
    run(python, "-m", "pip", "install", "-q", "-c", constraints, wheel, cwd=folder, env=clean_environment())
    return run(python, "-m", "pip", "check", cwd=folder, env=clean_environment()).strip()


def use(wheel: Path, folder: Path) -> str:
    """What was installed: imported without a warning, asked for its version, a fit run, from another folder."""
    binaries, elsewhere, env = folder / "venv" / "bin", folder / "elsewhere", clean_environment()
    elsewhere.mkdir()
    python = binaries / "python"
    run(python, "-W", "error", "-c", "import avbvi", cwd=elsewhere, env=env)
    run(python, "-W", "error", "-c", IMPORT, cwd=elsewhere, env=env)
    said = run(python, "-c", FIT, cwd=elsewhere, env=env).strip().splitlines()[-1]
    require(f"avbvi {version_of(wheel)}:" in said, f"the version of {wheel.name} is not what avbvi says: {said}")
    version = run(binaries / "avbvi", "--version", cwd=elsewhere, env=env)
    require(version_of(wheel) in version, f"avbvi --version does not name {version_of(wheel)}: {version}")
    return said


def check_types(folder: Path) -> str:
    """``pyright --verifytypes`` on what was installed."""
    binaries = folder / "venv" / "bin"
    pyright = shutil.which("pyright", path=str(Path(sys.executable).parent)) or shutil.which("basedpyright")
    if pyright is None:
        return "SKIPPED: no pyright (pip install pyright)"
    done = subprocess.run(
        [pyright, "--verifytypes", "avbvi", "--ignoreexternal"],
        cwd=folder / "elsewhere",
        env={**clean_environment(binaries), "VIRTUAL_ENV": str(binaries.parent)},
        text=True,
        capture_output=True,
    )
    score = re.search(r"Type completeness score: ([\d.]+)%", done.stdout)
    if score is None:  # pyright fetches itself when it first runs
        return f"SKIPPED: pyright did not run: {(done.stderr or done.stdout).strip().splitlines()[-1:]}"
    problems = re.findall(r"^\s+\S+ - error: .*$", done.stdout, re.MULTILINE)
    typed = float(score[1])
    require(typed >= LEAST_TYPED, f"{typed} % of public symbols have a known type:\n" + "\n".join(problems[:20]))
    return f"{typed} % of public symbols"


def main() -> int:
    """Run all checks; the exit status."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    passed = 0

    def step(name: str, check: Callable[[], str]) -> None:
        nonlocal passed
        start = time.monotonic()
        result = check()
        passed += not result.startswith("SKIPPED")
        print(f"{name:<12} {time.monotonic() - start:5.0f} s  {result}", flush=True)

    with tempfile.TemporaryDirectory(prefix="avbvi-package-") as name:
        folder = Path(name)
        try:
            step("build", lambda: " ".join(path.name for path in build(folder)))
            sdist, wheel = next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))
            metadata = ("-m", "twine", "check", "--strict", str(sdist), str(wheel))
            step("metadata", lambda: "passed" if run(sys.executable, *metadata, cwd=folder) else "")
            step("sdist", lambda: check_sdist(sdist, wheel, folder))
            step("wheel", lambda: check_wheel(wheel))
            step("environment", lambda: install(wheel, folder))
            step("use", lambda: use(wheel, folder))
            step("types", lambda: check_types(folder))
        except Failed as failure:
            print(f"{failure}\n{passed} passed, 1 failed")
            return 1
    print(f"{passed} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
