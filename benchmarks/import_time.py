"""What `import avbvi` costs, beside Pyro and ArviZ, which its users import anyway.

    python -m benchmarks.import_time [--rounds 8]

Every import has a process of its own. The imports take turns, and of each the least CPU seconds (user and system) of
all rounds count: other work on the machine can only add to them. ArviZ is imported by avbvi when it is first needed,
so that avbvi alone may cost less than both. Saved to `benchmarks/results/import_time.json`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import record

NAME = "import_time"
#: What is imported in one process, by the name of its row.
IMPORTS = {"pyro and arviz": "pyro, arviz", "pyro": "pyro", "avbvi": "avbvi"}
#: Most that avbvi may cost, as a multiple of Pyro and ArviZ together.
LIMIT = 1.3


def cpu_seconds(modules: str) -> float:
    """CPU seconds of a process that starts Python and imports ``modules``, names with commas between them."""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", f"import {modules}"])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"import {modules} failed, exit status {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def least_seconds(names: Sequence[str], rounds: int) -> dict[str, float]:
    """The least CPU seconds of each of ``names`` (keys of :data:`IMPORTS`) over ``rounds`` rounds, in turns."""
    seconds = {name: float("inf") for name in names}
    for _ in range(rounds):
        for name in names:
            seconds[name] = min(seconds[name], cpu_seconds(IMPORTS[name]))
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8, help="imports of each kind (default 8)")
    rounds = parser.parse_args(arguments).rounds
    cpu_seconds(IMPORTS["avbvi"])  # files are read from the disk once
    seconds = least_seconds(list(IMPORTS), rounds)
    both = seconds["pyro and arviz"]
    rows = [
        {"method": name, "seed": 0, "device": "cpu", "seconds": s, "ratio": s / both, "limit": LIMIT, "rounds": rounds}
        for name, s in seconds.items()
    ]
    print(record.format_table(rows, ("method", "seconds", "ratio", "limit")))
    print(record.save(NAME, rows))


if __name__ == "__main__":
    main()
