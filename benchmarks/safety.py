"""Is a run ever lost? Random kills, each resumed and compared to the bit, and a million steps on a small target.

    python -m benchmarks.safety kill-resume [--kills 50]
    python -m benchmarks.safety million-steps [--steps 1000000]

`kill-resume`: a process that fits with frequent checkpoints gets SIGKILL at a random moment, set-up and end of the run
included; another process resumes from what lies on the disk. Its result has to be that of a run without a checkpoint,
in every bit of the guide, the record, the counts and the random state. Half of the kills hit a run at a learning rate
at which it breaks down, on a density that has no finite gradient in places: with steps skipped and rolled back.

`million-steps`: networks of 16 units, and a look at all parameters every ten steps. The run goes on from its last
checkpoint when the command is given again after an interruption.

Both save to `benchmarks/results/safety.json`, where the other's rows stay. Processes are forked, so Linux or macOS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

import avbvi
from avbvi import (
    AdversarialELBO,
    AffineTrunk,
    AVBGuide,
    FlowTrunk,
    GaussianContrast,
    LogDensity,
    MLPAdversary,
    MLPSampler,
    Posterior,
    Schedule,
    Verdict,
    elbo,
    fitting,
    training,
)
from avbvi.diagnostics import choose_stage
from benchmarks import record
from benchmarks.peak_memory import PeakMemory

NAME = "safety"
UNITS = (16,)
REPORT_EVERY = 10_000
Row = dict[str, Any]


class Unjudged(training.Trainer):
    """A run that ends before the verdict, which follows from the state and the random state alone."""

    random_state = ""

    def _judged(self) -> Posterior:
        type(self).random_state = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
        return self._posterior(Verdict("ok", []))


class Watched(Unjudged):
    """Counts states that are not finite, in the record that a checkpoint keeps."""

    def _record(self, count: int, loss: float) -> None:
        super()._record(count, loss)
        finite = all(bool(torch.isfinite(p).all()) for p in self.guide.parameters())
        self.run.history.setdefault("finite", []).append(float(finite))
        if count % REPORT_EVERY == 0:
            lost = sum(1.0 - x for x in self.run.history["finite"])
            print(
                f"{time.strftime('%H:%M:%S')} step {count}: {lost:.0f} states not finite, "
                f"{int(self.guide.skipped_steps)} steps skipped, {self.recovery.rollbacks} rollbacks",
                flush=True,
            )


def banana(z: Tensor) -> Tensor:
    """A curved density in two dimensions, with scales 1 and 1/2."""
    return -0.5 * z[..., 0].square() - 2.0 * (z[..., 1] - z[..., 0].square() + 1.0).square()


def broken_banana(z: Tensor) -> Tensor:
    """The same; to the right of 3 standard deviations its gradient is NaN."""
    inside = torch.where(z[..., 0] > 3.0, 0.0 * z[..., 0], 1.0)
    return banana(z) + inside.sqrt() - inside.detach()


def small_guide(density: LogDensity, *, flow: bool = False) -> AVBGuide:
    """Networks of 16 units throughout."""
    return AVBGuide(
        density,
        trunk=FlowTrunk() if flow else AffineTrunk(),
        sampler=MLPSampler(UNITS),
        contrast=GaussianContrast(),
        adversary=MLPAdversary(UNITS),
    )


# -- random kills -----------------------------------------------------------------------------------------

Fit = Callable[[Path | None], Posterior]


def calm_fit(checkpoint: Path | None) -> Posterior:
    """160 steps at the default learning rate: trunk, adversarial stage, polish."""
    return _short_fit(banana, 2e-3, checkpoint)


def rough_fit(checkpoint: Path | None) -> Posterior:
    """The same at a learning rate at which the flow breaks down, with steps that have to be skipped."""
    return _short_fit(broken_banana, 0.5, checkpoint)


def _short_fit(log_prob: Callable[[Tensor], Tensor], lr: float, checkpoint: Path | None) -> Posterior:
    pyro.clear_param_store()
    density = LogDensity(log_prob, (2,))
    loss = AdversarialELBO(num_particles=32, pretrain_steps=10, schedule=Schedule(trunk=0.4))
    guide = small_guide(density, flow=True)
    return avbvi.fit(density, guide=guide, elbo=loss, steps=160, lr=lr, seed=1, progress=False, checkpoint=checkpoint)


FITS: dict[str, Fit] = {"calm": calm_fit, "rough": rough_fit}


def outcome(fit: Fit, checkpoint: Path | None) -> Row:
    """Run a fit and tell its result: a digest of all that has to be equal, and the counts."""
    with PeakMemory() as peak:
        posterior = fit(checkpoint)
    digest = hashlib.sha256()
    for name, value in sorted(posterior.guide.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    run = posterior.run
    digest.update(json.dumps([run.history, repr(posterior.comparison)]).encode())
    return {
        "digest": digest.hexdigest(),
        "random_state": Unjudged.random_state,
        "steps": run.steps,
        "skipped_steps": run.skipped_steps,
        "rollbacks": run.rollbacks,
        "peak_bytes": peak.bytes,
    }


def forked(work: Callable[[], Row], result: Path) -> int:
    """Do the work in a child process that writes what it returns to a file; returns the child's id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        partial = result.with_suffix(".partial")
        partial.write_text(json.dumps(work()))
        os.replace(partial, result)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def waited(child: int) -> int:
    """Wait for a child; 0, or minus the signal or plus the status that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def saved_step(checkpoint: Path) -> int | None:
    """How far the run in a checkpoint is; ``None`` where there is none."""
    if not checkpoint.exists():
        return None
    return int(torch.load(checkpoint, weights_only=True)["state"]["guide"]["step_count"])


def kill_and_resume(fit: str, moment: float, folder: Path) -> Row:
    """Kill a run ``moment`` seconds after its start and resume it; what the disk held and what came out."""
    checkpoint, result = folder / "run.pt", folder / "result.json"
    child = forked(lambda: outcome(FITS[fit], checkpoint), result)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    killed = waited(child) == -signal.SIGKILL
    saved = saved_step(checkpoint)
    result.unlink(missing_ok=True)
    status = waited(forked(lambda: outcome(FITS[fit], checkpoint), result))
    found = json.loads(result.read_text()) if status == 0 else {"error": f"the resumed run ended with {status}"}
    return {"killed": killed, "saved_step": saved, **found}


def kill_resume(kills: int, seed: int) -> list[Row]:
    """All kills; one record for each."""
    torch.set_num_threads(1)
    fitting.Trainer = Unjudged  # type: ignore[attr-defined]
    training.CHECKPOINT_SECONDS = 0.05
    # With all its draws the choice of stage would take most of the time, and most of the kills.
    elbo.choose_stage = partial(choose_stage, n=500)  # type: ignore[attr-defined]
    # torch imports its compiler with the first optimiser, which takes seconds: once here, not in every child.
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    generator = random.Random(seed)
    whole: dict[str, Row] = {}
    length: dict[str, float] = {}
    rows: list[Row] = []
    for name, fit in FITS.items():
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            waited(forked(lambda fit=fit: outcome(fit, None), result))  # type: ignore[misc]
            whole[name] = json.loads(result.read_text())
            del whole[name]["peak_bytes"]  # no part of the result
            started = time.monotonic()
            waited(forked(lambda fit=fit, f=folder: outcome(fit, Path(f) / "run.pt"), result))  # type: ignore[misc]
            length[name] = time.monotonic() - started
        print(f"{name}: {whole[name]}, {length[name]:.1f} s with checkpoints", flush=True)
    while len(rows) < kills:
        name = list(FITS)[len(rows) % len(FITS)]
        started = time.monotonic()
        moment = generator.uniform(0.0, length[name])
        with tempfile.TemporaryDirectory() as folder:
            found = kill_and_resume(name, moment, Path(folder))
        if not found.pop("killed"):
            continue  # it was done before the kill
        equal = all(found.get(key) == value for key, value in whole[name].items())
        rows.append(
            {
                "method": "kill-resume",
                "target": name,
                "seed": len(rows),
                "device": "cpu",
                "seconds": time.monotonic() - started,
                "killed_after": moment,
                "equal": equal,
                **{key: value for key, value in found.items() if key not in ("digest", "random_state")},
            }
        )
        print(record.format_table(rows[-1:], ("target", "killed_after", "saved_step", "equal")), flush=True)
    return rows


# -- a million steps ----------------------------------------------------------------------------------------


def million_steps(steps: int, folder: Path) -> list[Row]:
    """The long run, from its last checkpoint if there is one."""
    torch.set_num_threads(1)
    fitting.Trainer = Watched  # type: ignore[attr-defined]
    pyro.clear_param_store()
    density = LogDensity(banana, (2,))
    # No decay of the rates: a million steps at full rate, in the adversarial stage but for a twentieth.
    loss = AdversarialELBO(
        num_particles=32, adversary_steps=1, pretrain_steps=100, schedule=Schedule(trunk=0.01, decay=False)
    )
    guide = small_guide(density)
    checkpoint = folder / f".{NAME}-{steps}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    started, cpu = time.monotonic(), time.process_time()
    before = (
        int(torch.load(checkpoint, weights_only=True)["state"]["guide"]["step_count"]) if checkpoint.exists() else 0
    )
    with PeakMemory() as peak:
        posterior = avbvi.fit(
            density, guide=guide, elbo=loss, steps=steps, seed=0, progress=False, checkpoint=checkpoint
        )
    run = posterior.run
    if run.interrupted:
        raise SystemExit(f"interrupted after {run.steps} steps; give the command again to go on")
    done = max(run.steps - before, 1)
    draws = posterior.sample(100_000)["z"].double()
    row = {
        "method": "million-steps",
        "target": "banana",
        "seed": 0,
        "device": "cpu",
        "seconds": run.seconds,
        "steps": run.steps,
        "states_looked_at": len(run.history["finite"]),
        "states_not_finite": int(sum(1.0 - x for x in run.history["finite"])),
        "losses_not_finite": sum(not math.isfinite(x) for x in run.history["elbo"]),
        "skipped_steps": run.skipped_steps,
        "rollbacks": run.rollbacks,
        "peak_bytes": peak.bytes,
        "stage_kept": "adversarial" if posterior.guide.is_adversarial else "trunk",
        # Exact: means 0 and 0, variances 1 and 2 + 1/4.
        "mean_error_sd": float((draws.mean(0) / torch.tensor([1.0, 1.5])).abs().max()),
        "sd_ratio_min": float((draws.std(0) / torch.tensor([1.0, 1.5])).min()),
        "sd_ratio_max": float((draws.std(0) / torch.tensor([1.0, 1.5])).max()),
        "milliseconds_per_step": 1e3 * (time.monotonic() - started) / done,
        "cpu_milliseconds_per_step": 1e3 * (time.process_time() - cpu) / done,
    }
    checkpoint.unlink(missing_ok=True)
    return [row]


def save(rows: list[Row]) -> Path:
    """Save the rows beside those of the other part."""
    parts = {row["method"] for row in rows}
    path = record.RESULTS / f"{NAME}.json"
    commit = record.git_commit()
    others = [row for row in record.load(NAME)["records"] if row["method"] not in parts] if path.exists() else []
    return record.save(NAME, [*others, *({**row, "commit": commit} for row in rows)])


def main() -> None:
    """Run one part, print what it found, save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    kill = parts.add_parser("kill-resume")
    kill.add_argument("--kills", type=int, default=50)
    kill.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    million = parts.add_parser("million-steps")
    million.add_argument("--steps", type=int, default=1_000_000)
    for part in (kill, million):
        part.add_argument("--no-save", action="store_true", help="print only")
    read = parser.parse_args()
    if read.part == "kill-resume":
        rows = kill_resume(read.kills, read.seed)
        equal = sum(row["equal"] for row in rows)
        kinds = dict(Counter(row["target"] for row in rows))
        print(f"{equal} of {len(rows)} resumed runs are equal to the uninterrupted one ({kinds})")
    else:
        rows = million_steps(read.steps, record.RESULTS)
        print(record.format_table(rows, [key for key in rows[0] if key not in ("seed", "device", "method")]))
    if not read.no_save:
        print(save(rows))


if __name__ == "__main__":
    main()
