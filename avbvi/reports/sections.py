"""The sections of a report, from its material."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..diagnostics import Verdict
from ..export import container, import_arviz
from . import draw_pictures, run_pictures
from .blocks import Block, Code, Listing, Paragraph, Section, Table, number, with_error
from .coordinates import Coordinates
from .figures import figures_table
from .material import Material

HEADLINES = {
    "ok": "No check found anything wrong with this fit.",
    "suspect": "Something is wrong with this fit: look at the reasons before it is used.",
    "failed": "This fit must not be used.",
}
ADVICE = "try: "


def split_reasons(verdict: Verdict) -> tuple[list[str], list[str], list[str]]:
    """Doubts, advice, and what was found in order, as the verdict lists them."""
    at = next((i for i, reason in enumerate(verdict.reasons) if reason.startswith(ADVICE)), None)
    if at is None:
        return ([], [], list(verdict.reasons)) if verdict.status == "ok" else (list(verdict.reasons), [], [])
    advice = [tip.strip() for tip in verdict.reasons[at][len(ADVICE) :].split("; or ")]
    return list(verdict.reasons[:at]), advice, list(verdict.reasons[at + 1 :])


def verdict_section(material: Material) -> Section:
    """The verdict in words: doubts, what to try, what was found."""
    doubts, advice, found = split_reasons(material.verdict)
    blocks: list[Block] = []
    if doubts:
        blocks.append(Listing("Reasons for doubt", doubts))
    if advice:
        blocks.append(Listing("What to try", advice))
    if found:
        blocks.append(Listing("What was found", found))
    if material.summary.latents is not None:
        blocks.append(
            Paragraph(
                "The verdict comes from fresh draws for the fit's own data and from held-out figures of the adversary. "
                "It does not see how far q(z | x) is from the posterior; with annealed importance sampling it does: "
                "posterior.judge(ais=...).",
                quiet=True,
            )
        )
        return Section("reasons", "Reasons", blocks)
    blocks.append(
        Paragraph(
            "The verdict comes from fresh draws, a short HMC from them, fresh networks and importance weights. "
            "None of these checks can see a mode that no start found.",
            quiet=True,
        )
    )
    return Section("reasons", "Reasons", blocks)


def figures_section(material: Material) -> Section | None:
    """The verdict's figures with their limits."""
    summary = material.summary
    is_amortised = summary.latents is not None or "data" in material.verdict.figures
    table = figures_table(material.verdict, is_amortised=is_amortised, exact=summary.exact)
    if table is None:
        return None
    note = (
        "After ± stands one standard error. A figure casts doubt only if it is beyond its limit by more than chance. "
        "Directions of extreme ratios are found on one half of the draws and measured on the other, so that of a good "
        "fit the smallest may come out above the largest."
    )
    return Section("figures", "Figures and limits", [table, Paragraph(note, quiet=True)])


def summary_section(material: Material) -> Section:
    """Means, standard deviations and intervals of the coordinates."""
    coordinates, summary = material.summary.coordinates, material.summary
    if coordinates is None:
        if summary.latents is not None:
            return _latents_section(material)
        return Section("summary", "Posterior summary", [Paragraph(f"Not shown: {summary.missing['draws']}.")])
    moved = summary.hmc_steps
    how = f"each moved by {moved} HMC transitions, as posterior.sample gives them" if moved else "of the guide itself"
    notes = [
        f"{len(coordinates.draws)} independent draws, {how}. HDI is the highest-density interval. Columns of ESS and "
        "R-hat are left out: of independent draws they say nothing about the quality of a fit; the verdict does."
    ]
    left = coordinates.total - len(coordinates.names)
    if left:
        by = "that a short HMC changes most" if coordinates.changes is not None else "whose draws are most skewed"
        notes.append(f"Shown are the {len(coordinates.names)} coordinates {by}, worst first; {left} are left out.")
    return Section(
        "summary", "Posterior summary", [_summary_table(coordinates), *(Paragraph(note, quiet=True) for note in notes)]
    )


def _summary_table(coordinates: Coordinates) -> Table:
    az = import_arviz()
    draws = coordinates.draws.double().numpy()
    # Names of our own: a site's name may be none that ArviZ takes.
    columns = {f"c{i:04d}": draws[None, :, i] for i in range(draws.shape[1])}
    found = az.summary(container({"posterior": columns}, {}, {}, {}), kind="stats", round_to="none")
    header = ["coordinate", *(str(c).replace("_", " ") for c in found.columns)]
    rows = []
    for i, values in enumerate(np.asarray(found, dtype=float)):
        rows.append([coordinates.names[i], *(number(float(v)) for v in values)])
    if coordinates.changes is not None:
        header += ["mean, HMC shift (sd)", "sd, HMC ratio"]
        for i, row in enumerate(rows):
            if i < len(coordinates.changes):
                shift, shift_error, ratio, ratio_error = coordinates.changes[i].tolist()
                row += [with_error(shift, shift_error), with_error(ratio, ratio_error)]
            else:
                row += ["", ""]
    return Table("Posterior summary", header, rows, hidden=True)


def _latents_section(material: Material) -> Section:
    latents = material.summary.latents
    assert latents is not None
    rows = [
        [name, number(float(a), 2), number(float(w)), number(float(b))]
        for name, a, w, b in zip(latents.names, latents.activity, latents.within, latents.between, strict=True)
    ]
    blocks: list[Block] = [
        Table(
            "Latent coordinates, most active first",
            ["coordinate", "activity", "sd of q(z | x)", "sd of its means"],
            rows,
        ),
        Paragraph(
            f"Of {latents.data} data, in unconstrained coordinates. Activity is the share of a coordinate's variance "
            "that lies between data: near 0, it carries nothing of them."
            + (f" {latents.dim - len(rows)} less active coordinates are left out." if latents.dim > len(rows) else ""),
            quiet=True,
        ),
    ]
    if latents.errors:
        blocks.append(
            Table(
                "Reconstructions: root mean squared errors",
                ["observed site", "by the model", "by the data's mean"],
                [[name, *(number(e) for e in errors)] for name, errors in latents.errors.items()],
            )
        )
    shown = run_pictures.latent_map(latents)
    if shown is not None:
        blocks.append(shown)
    return Section("summary", "Latents", blocks)


def marginals_section(material: Material) -> Section | None:
    """Marginals, pairs and changes of the worst coordinates."""
    coordinates = material.summary.coordinates
    if coordinates is None:
        return None
    blocks: list[Block] = [draw_pictures.marginals(coordinates)]
    blocks += [
        shown for shown in (draw_pictures.pairs(coordinates), draw_pictures.changes(coordinates)) if shown is not None
    ]
    if coordinates.before is not None:
        blocks.append(
            Paragraph(
                f"Pictured are {len(coordinates.before)} draws of the guide, before and after the short HMC of the "
                "verdict. It leaves the posterior as it is: where the two agree, the fit agrees with the posterior "
                "nearby. It does not cross between separated modes.",
                quiet=True,
            )
        )
    return Section("draws", "Marginals and pairs", blocks)


def predictive_section(material: Material) -> Section:
    """Posterior predictive checks, or why there are none."""
    checks = material.summary.checks
    if not checks:
        reason = material.summary.missing.get("predictive", "there are no observed sites")
        return Section("predictive", "Posterior predictive", [Paragraph(f"Not shown: {reason}.")])
    blocks: list[Block] = []
    for check in checks:
        blocks.append(run_pictures.predictive(check))
        rows = [
            [which, number(v[0]), number(v[2]), f"{number(v[1])} to {number(v[3])}", number(v[4], 2)]
            for which, v in check.statistics.items()
        ]
        header = ["statistic", "observed", "median of replications", "90 %", "share above"]
        blocks.append(Table(f"{check.name}: statistics of its {check.size} observations", header, rows))
    note = "A share above near 0 or 1 tells that the model does not reproduce that statistic; that is about the model."
    return Section("predictive", "Posterior predictive", [*blocks, Paragraph(note, quiet=True)])


def training_section(material: Material) -> Section:
    """The ELBO along the run."""
    figures = material.verdict.figures
    elbo, evidence = figures.get("elbo", math.nan), figures.get("log_evidence", math.nan)
    shown = run_pictures.training(material.run, elbo, evidence, material.summary.exact)
    if shown is None:
        short = "the run recorded less than two ELBOs; they are recorded every 10 steps"
        return Section("training", "Training", [Paragraph(f"Not shown: {short}.")])
    return Section("training", "Training", [shown])


def density_section(material: Material) -> Section:
    """Importance weights and reliability of the adversary, where they exist."""
    latents = material.summary.latents
    reliability = material.evidence.reliability if latents is None else latents.reliability
    weights = run_pictures.weights(material.evidence)
    blocks: list[Block] = []
    if weights is not None:
        blocks.append(weights)
    elif latents is not None:
        blocks.append(Paragraph("There are no importance weights: log q of an amortised guide is learned."))
    else:
        blocks.append(Paragraph("No importance weights were kept with this fit."))
    if reliability is not None:
        blocks.append(run_pictures.reliability_picture(reliability))
    elif material.summary.exact:
        blocks.append(Paragraph("The kept stage is the trunk, whose density is exact: no adversary is in force."))
    else:
        blocks.append(Paragraph("No reliability of the adversary was kept with this fit."))
    return Section("density", "Density: weights and adversary", blocks)


def run_section(material: Material) -> Section:
    """Which stage was kept and why, and how the run went."""
    run, summary, comparison = material.run, material.summary, material.comparison
    kept = "the trunk, whose density is exact" if summary.exact else "the adversarial stage, whose density is learned"
    rows = [["stage that was kept", kept]] if summary.latents is None else [["density", "learned, for each datum"]]
    if comparison is not None:
        difference = with_error(*comparison.difference)
        excess = comparison.classifier_excess
        why = f"energy distance to the reference, adversarial stage less trunk: {difference}"
        if excess is not None:
            why += f"; a classifier's accuracy, likewise: {with_error(*excess)}"
        rows += [["why", why], ["reference", comparison.reference]]
    elif summary.latents is None:
        rows.append(["why", _without_comparison(summary.exact)])
    rows += [
        ["steps", str(run.steps) + (", interrupted" if run.interrupted else "")],
        ["seconds", number(run.seconds, 4)],
        ["execution", run.execution],
        ["skipped steps, returns to an earlier state", f"{run.skipped_steps}, {run.rollbacks}"],
    ]
    if run.stopped_at is not None:
        rows.append(["trunk found converged at step", str(run.stopped_at)])
    rows += [[role, kind] for role, kind in summary.parts.items()]
    sites = ", ".join(f"{name} {tuple(shape)}" if shape else str(name) for name, shape in summary.sites)
    rows.append(["latent sites", sites])
    return Section("run", "How the fit came about", [Table("The run", ["", ""], rows, words=True, hidden=True)])


def _without_comparison(exact: bool) -> str:
    """Why a stage was kept that was compared with no other."""
    if exact:
        return "no adversarial stage was trained: the trunk was close already, or the run ended before it"
    return "the trunk has nothing to train and is no approximation of its own"


def versions_section(material: Material) -> Section:
    """Versions, hardware, seed, and a call that repeats the fit."""
    run, summary = material.run, material.summary
    rows = [[name, value] for name, value in {**summary.versions, **summary.hardware}.items()]
    rows.append(["seed", "none was given" if run.seed is None else str(run.seed)])
    blocks: list[Block] = [Table("Versions and hardware", ["", ""], rows, words=True, hidden=True)]
    if run.seed is None:
        blocks.append(Paragraph("Without a seed the fit can't be repeated exactly: fit(..., seed=0)."))
    else:
        name = summary.model if summary.model.isidentifier() else "model"
        blocks.append(Code(f"posterior = avbvi.fit({name}, ..., seed={run.seed}, steps={run.steps})"))
        blocks.append(
            Paragraph(
                "With the model's arguments, the same guide and options, versions, device and number of threads, this "
                "call repeats the fit.",
                quiet=True,
            )
        )
    return Section("versions", "Versions and seed", blocks)


SECTIONS: tuple[Callable[[Material], Section | None], ...] = (
    verdict_section,
    figures_section,
    summary_section,
    marginals_section,
    predictive_section,
    training_section,
    density_section,
    run_section,
    versions_section,
)


def sections(material: Material) -> list[Section]:
    """All sections that the material has something for."""
    return [found for section in SECTIONS if (found := section(material)) is not None]
