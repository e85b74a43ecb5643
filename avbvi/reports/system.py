"""Where a fit was made: versions of the libraries, processor, threads, device."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import metadata

import torch

#: The libraries that a fit's figures depend on, by the names that they are installed by.
LIBRARIES = {
    "avbvi": "avbvi",
    "PyTorch": "torch",
    "Pyro": "pyro-ppl",
    "ArviZ": "arviz",
    "NumPy": "numpy",
    "SciPy": "scipy",
    "Matplotlib": "matplotlib",
}


def version_of(distribution: str) -> str:
    """The installed version of a distribution, or "not installed"."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Name -> version of Python and of the libraries."""
    return {"Python": platform.python_version(), **{name: version_of(LIBRARIES[name]) for name in LIBRARIES}}


def hardware(device: torch.device | None = None) -> dict[str, str]:
    """What the arithmetic runs on, in words; no names of machine or user.

    Args:
        device: where the fit lives; the default device if ``None``.
    """
    device = device or torch.get_default_device()
    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": f"{_cores()} usable",
        "threads": str(torch.get_num_threads()),
        "device": str(device),
    }
    if torch.cuda.is_available():
        index = device.index if device.type == "cuda" and device.index is not None else torch.cuda.current_device()
        found["GPU"] = f"{torch.cuda.get_device_name(index)}, CUDA {torch.version.cuda}"
    return found


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
