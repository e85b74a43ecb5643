"""Fixtures for all tests: every test starts from the same state."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_sessionstart() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Seed torch, NumPy and `random`, empty Pyro's store; restore the default dtype afterwards."""
    dtype = torch.get_default_dtype()
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU and, where there is one, the GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def posteriordb() -> Path:
    """The folder with data and reference draws of posteriordb."""
    default = REPOSITORY.parent / "shared" / "posteriordb"
    folder = Path(os.environ.get("AVBVI_POSTERIORDB", default))
    if not folder.is_dir():
        pytest.skip(f"no reference posteriors in {folder}; set AVBVI_POSTERIORDB")
    return folder


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two processes of one group (:class:`tests.processes.Processes`), started by the first work they get."""
    from tests.processes import Processes

    made = Processes(tmp_path_factory.mktemp("processes"))
    yield made
    made.close()


@pytest.fixture
def default_sigint() -> Iterator[None]:
    """Python's own handler of Ctrl-C: a process in the background starts with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
