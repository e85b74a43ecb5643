"""Markdown tables of the boards that ask whether avbvi can be trusted: verdicts, stopping, calibration, safety."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.tables import Row, markdown
from benchmarks.verdicts import FITS, clopper_pearson, right, summary


def _share(successes: int, trials: int) -> str:
    """A proportion with its exact 95 % interval; "-" without trials."""
    if not trials:
        return "-"
    low, high = clopper_pearson(successes, trials)
    return f"{successes} of {trials}: {successes / trials:.0%} ({low:.0%} to {high:.0%})"


def verdicts(records: Sequence[Row]) -> str:
    """Recall and false alarms of verdicts by way of fitting, and of all."""
    rows = []
    for name in (*FITS, None):
        mine = [r for r in records if name is None or r["method"] == name]
        if not mine:
            continue
        found = summary(mine)
        rows.append(
            [
                name or "**all**",
                _share(found["found"], found["bad"]),
                _share(found["false_alarms"], found["good"]),
                str(found["between"]),
                str(len(found["undetectable"])),
                str(found["unknown"]),
            ]
        )
    header = ["fit", "bad fits found", "good fits doubted", "in between", "undetectable", "not judged"]
    return markdown(header, rows)


def wrong_verdicts(records: Sequence[Row]) -> str:
    """The fits whose verdict was wrong, one by one."""
    rows = [
        [
            r["target"].replace("_", " "),
            r["method"],
            right(r),
            *(f"{r[key]:.2f}" if r.get(key) is not None else "-" for key in ("kl", "mean_error_sd", "c2st")),
        ]
        for r in records
        if right(r) in ("missed", "false alarm", "undetectable")
    ]
    if not rows:
        return "None."
    return markdown(["target", "fit", "what", "KL", "largest mean error (sd)", "C2ST"], rows)


def stopping(records: Sequence[Row]) -> str:
    """False alarms of the stopping rule by family of traces, beside the usual rule."""
    rows = []
    synthetic = [r for r in records if "traces" in r]
    for family in dict.fromkeys(r["family"] for r in synthetic):
        cells = [family]
        for name in ("stopping", "moving-average"):
            mine = [r for r in synthetic if r["family"] == family and r["method"] == name]
            cells.append(_share(sum(r["false_alarms"] for r in mine), sum(r["traces"] for r in mine)))
        guarded = any(r["guarded"] for r in synthetic if r["family"] == family)
        rows.append([*cells, "yes" if guarded else "no"])
    return markdown(["traces", "false alarms", "moving average over blocks", "within the rule's assumption"], rows)


def calibration(records: Sequence[Row]) -> str:
    """Smallest adjusted p-value and coverage of each study."""
    rows = []
    for r in records:
        if r.get("fits") != "all":
            continue
        cover = [r.get(f"coverage_{level}") for level in (50, 80, 95)]
        rows.append(
            [
                r["target"].replace("_", " "),
                r["method"],
                r["statistic"],
                f"{r['p_adjusted']:.2g}",
                " / ".join("-" if c is None else f"{c:.0%}" for c in cover),
            ]
        )
    return markdown(["model", "posterior", "statistic", "adjusted p-value", "coverage of 50/80/95 %"], rows)


def safety(records: Sequence[Row]) -> str:
    """Kills that were resumed, and steps without a non-finite state."""
    rows = []
    kills = [r for r in records if r["method"] == "kill-resume"]
    if kills:
        equal = sum(bool(r["equal"]) for r in kills)
        rows.append(["kills resumed to the same result, bit for bit", f"{equal} of {len(kills)}"])
    for r in records:
        if r["method"] == "million-steps":
            states = f"{r['states_not_finite']} of {r['states_looked_at']} looked at"
            rows.append([f"non-finite states in {r['steps']:,} steps", states])
            rows.append(["rollbacks and skipped steps there", f"{r['rollbacks']} and {r['skipped_steps']}"])
    return markdown(["what", "result"], rows)
