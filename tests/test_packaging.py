"""What is shipped, and which names it offers."""

import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.version import Version

import avbvi
from benchmarks import import_time
from tests.package_check import IN_WHEEL

REPOSITORY = Path(__file__).resolve().parents[1]


def test_wheel_ships_the_package_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(REPOSITORY)  # a build backend works in the current directory
    wheel = tmp_path / backend.build_wheel(str(tmp_path))
    assert wheel.name.split("-")[1] == avbvi.__version__
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"avbvi"}
    assert len(folders) == 2
    here = {path for path in Path("avbvi").resolve().rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(REPOSITORY).as_posix() for path in here} == {n for n in names if n.startswith("avbvi/")}
    assert "avbvi/py.typed" in names
    assert {path.suffix for path in here} <= IN_WHEEL


def test_version_stands_in_one_place() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    citation = re.findall(r"^version: (\S+)$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation == [avbvi.__version__]
    # A version is that of the changelog's newest heading, or comes before one that is still to be written.
    released = re.findall(r"^## \[?(\d[^\]\s]*)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    version = Version(avbvi.__version__)
    assert version == Version(released[0]) or (version.is_prerelease and version > Version(released[0]))


def test_import_warns_of_nothing_and_leaves_arviz_alone() -> None:
    code = "import avbvi, sys; sys.exit(bool({'arviz', 'matplotlib.pyplot'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=REPOSITORY, check=True)


@pytest.mark.slow
def test_import_costs_little_more_than_pyro_and_arviz() -> None:
    pytest.importorskip("resource", reason="CPU seconds of a process are asked for as on Unix")
    import_time.cpu_seconds("avbvi")  # the files are read
    seconds = import_time.least_seconds(["avbvi", "pyro and arviz"], rounds=2)
    assert seconds["avbvi"] < import_time.LIMIT * seconds["pyro and arviz"], seconds


def test_import_time_is_that_of_the_process() -> None:
    pytest.importorskip("resource", reason="CPU seconds of a process are asked for as on Unix")
    assert 0.0 < import_time.cpu_seconds("sys") < 1.0
    with pytest.raises(RuntimeError, match="import no_such_module failed, exit status 1"):
        import_time.cpu_seconds("no_such_module")


def test_all_names_exist_once() -> None:
    assert len(set(avbvi.__all__)) == len(avbvi.__all__)
    assert [name for name in avbvi.__all__ if not hasattr(avbvi, name)] == []


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(avbvi.__path__)])
def test_no_public_name_hides_a_module(name: str) -> None:
    module = importlib.import_module(f"avbvi.{name}")
    assert getattr(avbvi, name) is module
