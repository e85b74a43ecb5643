"""What is shipped, and which names it offers."""

import importlib
import pkgutil
from pathlib import Path
from zipfile import ZipFile

import pytest

import avbvi

REPOSITORY = Path(__file__).resolve().parents[1]


def test_wheel_ships_the_package_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(REPOSITORY)  # a build backend works in the current directory
    wheel = tmp_path / backend.build_wheel(str(tmp_path))
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"avbvi"}
    assert len(folders) == 2
    sources = {path.relative_to(REPOSITORY).as_posix() for path in Path("avbvi").resolve().rglob("*.py")}
    assert sources | {"avbvi/py.typed"} == {name for name in names if name.startswith("avbvi/")}


def test_all_names_exist_once() -> None:
    assert len(set(avbvi.__all__)) == len(avbvi.__all__)
    assert [name for name in avbvi.__all__ if not hasattr(avbvi, name)] == []


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(avbvi.__path__)])
def test_no_public_name_hides_a_module(name: str) -> None:
    module = importlib.import_module(f"avbvi.{name}")
    assert getattr(avbvi, name) is module
