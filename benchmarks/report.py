"""Tables and figures of README and docs, made from ``benchmarks/results/*.json``: ``python -m benchmarks.report``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import digits as digits_board
from benchmarks import (
    figures,
    image_tables,
    latent_tables,
    mnist,
    objective_tables,
    record,
    relative_tables,
    reproduction,
    scale_tables,
    speed_tables,
    tables,
    time_to_kl,
    trust_tables,
)
from benchmarks.tables import Row

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
IMAGES = DOCS / "images"
PAGES = (
    ROOT / "README.md",
    *sorted((DOCS / "benchmarks").glob("*.md")),
    DOCS / "theory" / "relatives.md",
    DOCS / "howto" / "reproduce.md",
)
NOTE = "\n\n† With some seed at least, log q is learned by the adversary: an estimate, not a bound."
#: Coordinates of Eight Schools' paper problem that the README's table shows.
FRONT = tuple(c for c in tables.EIGHT_SCHOOLS if c[0] in ("knn_kl_qp", "kl_exact", "c2st", "p_tau_positive", "seconds"))


def eight_schools(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The parts that the Eight Schools board has in README and docs."""
    paper, classic, curve = "eight_schools_paper", "eight_schools_classic", "eight_schools_paper_curve"
    parts = {
        "front": tables.by_method(records, paper, FRONT),
        paper: tables.by_method(records, paper, tables.EIGHT_SCHOOLS) + NOTE,
        classic: tables.by_method(records, classic, tables.EIGHT_SCHOOLS) + NOTE,
        "stages": tables.stages(records, paper),
    }
    pictures = {"benchmark_eight_schools": figures.methods(records, paper)}
    if any(r["target"] == curve for r in records):
        floor = tables.values(tables.of(records, paper, "floor"), "knn_kl_qp")
        pictures["benchmark_curves"] = figures.curves(records, curve, floor)
    return parts, pictures


def toy_densities(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The parts of the board of toy densities."""
    parts = {
        "toy c2st": tables.across(records, "c2st", ".3f"),
        "toy knn": tables.across(records, "knn_kl_qp", ".3f"),
        "toy exact": tables.across(records, "kl_exact", ".3f"),
        "toy sd": tables.across(records, "sd_ratio_min", ".2f"),
        "toy verdict": verdicts(records),
    }
    title = "classifier accuracy - 1/2, 20,000 draws (dotted: noise floor)"
    return parts, {"benchmark_toy_densities": figures.board(records, "c2st", title, least=1e-3, above=0.5)}


def verdicts(records: list[Row]) -> str:
    """What avbvi's own fits said of themselves, beside what the classifier found."""
    rows = []
    for target in dict.fromkeys(r["target"] for r in records):
        for method in ("default", "avb-pure", "trunk-only"):
            mine = [r for r in tables.of(records, target, method) if "verdict" in r]
            if mine:
                said = ", ".join(r["verdict"] for r in mine)
                kept = ", ".join(r["stage_kept"] for r in mine)
                found = tables.spread(tables.values(mine, "c2st"), ".3f")
                rows.append([target.replace("_", " "), tables.LABELS[method], said, kept, found])
    return tables.markdown(["target", "method", "verdict by seed", "stage kept", "C2ST"], rows)


def posteriordb(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The parts of the board of real posteriors."""
    parts = {
        f"posteriordb {target}": tables.by_method(records, target, tables.POSTERIORDB)
        for target in dict.fromkeys(r["target"] for r in records)
    }
    parts["posteriordb front"] = tables.across(records, "mean_error_sd", ".3f")
    title = "largest error of a mean, in posterior sds (dotted: noise floor)"
    return parts, {"benchmark_posteriordb": figures.board(records, "mean_error_sd", title, least=3e-3)}


def divergences(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The parts of the board of judges."""
    sizes = sorted({r["draws"] for r in records if r.get("exact") is not None})
    return {**{f"accuracy {n}": tables.accuracy(records, n) for n in sizes}, "speed": tables.speed(records)}, {}


def robust(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The parts of the board of separated modes, thin shapes and many dimensions."""
    parts = {
        "robust": tables.against_flows(records, "knn_kl_qp"),
        "robust c2st": tables.against_flows(records, "c2st"),
        "robust modes": tables.modes(records),
        "robust knn": tables.across(records, "knn_kl_qp", ".3f"),
        "robust exact": tables.across(records, "kl_exact", ".3f"),
        "robust sd min": tables.across(records, "sd_ratio_min", ".2f"),
        "robust sd max": tables.across(records, "sd_ratio_max", ".2f"),
        "robust mean": tables.across(records, "mean_error_sd", ".3f"),
        "robust stages": tables.forced_stages(records, "all-stages", "trunk-only"),
        "robust verdict": verdicts(records),
    }
    title = "classifier accuracy - 1/2, 20,000 draws (dotted: noise floor)"
    return parts, {"benchmark_robust": figures.board(records, "c2st", title, least=1e-3, above=0.5)}


def verdict_scores(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The parts of the board that scores verdicts."""
    return {"verdicts": trust_tables.verdicts(records), "verdicts wrong": trust_tables.wrong_verdicts(records)}, {}


def stopping(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The part of the stopping rule's board."""
    return {"stopping": trust_tables.stopping(records)}, {}


def calibration(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The part of the board of calibration over the prior."""
    return {"calibration": trust_tables.calibration(records)}, {}


def own_sampler(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The part of the board of a user's own sampler."""
    return {"own sampler": tables.by_method(records, "eight_schools_paper", tables.EIGHT_SCHOOLS)}, {}


def safety(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The part of the board of kills and long runs."""
    return {"safety": trust_tables.safety(records)}, {}


def digits(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The parts of the board of small digits; its pictures come with the run."""
    targets = [name for name in digits_board.TARGETS if any(r["target"] == name for r in records)]
    return {name.replace("_", " "): image_tables.evidence(records, name) for name in targets}, {}


def mnist_tables(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The parts of the MNIST board, by device: a GPU's runs are longer and see more of the test set."""
    parts = {}
    for device in sorted({str(r["device"]) for r in records}):
        mine = [r for r in records if r["device"] == device]
        for name, published in mnist.PUBLISHED.items():
            if any(r["target"] == name for r in mine):
                kind = device.partition(":")[0]
                parts[f"mnist {kind} {name.replace('_', ' ')}"] = image_tables.evidence(mine, name, published)
    return parts, {}


def relatives(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The parts of the relatives' board: a table of each data set, and what order it shows; it draws its pictures."""
    parts = {}
    for target in dict.fromkeys(str(r["target"]) for r in records):
        said = [relative_tables.table(records, target), relative_tables.order(records, target)]
        parts[f"relatives {target}"] = "\n\n".join(filter(None, said))
    return parts, {}


def synthetic_vae(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The part of the synthetic example; its board draws the picture."""
    return {"synthetic vae": latent_tables.synthetic(records)}, {}


def objectives(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The parts of the board of the adversary's objectives."""
    fits = {f"objectives {target}": objective_tables.avb(records, target) for target in ("avb", "avb+ac")}
    alone = {
        f"objectives {target}": objective_tables.gaussians(records, target)
        for target in ("gaussians", "gaussians-unbounded")
    }
    return {**fits, **alone}, {}


def family(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The parts of the family's board on the synthetic example; its board draws the pictures."""
    targets = {"family": "one_hot_2x2", "family unsure": "unsure_2x2"}
    return {part: latent_tables.family(records, target) for part, target in targets.items()}, {}


def linear_gaussian(records: list[Row]) -> tuple[dict[str, str], dict[str, Figure]]:
    """The part of AS-VAE on linear-Gaussian data."""
    return {"linear gaussian": latent_tables.linear_gaussian(records)}, {}


BOARDS = {
    "eight_schools": eight_schools,
    "toy_densities": toy_densities,
    "posteriordb": posteriordb,
    "robust": robust,
    "divergences": divergences,
    "verdicts": verdict_scores,
    "stopping": stopping,
    "calibration": calibration,
    "own_sampler": own_sampler,
    "safety": safety,
    "digits": digits,
    "mnist": mnist_tables,
    "relatives": relatives,
    "synthetic_vae": synthetic_vae,
    "objectives": objectives,
    "family": family,
    "linear_gaussian": linear_gaussian,
    "speed": lambda records: (speed_tables.table(records), {}),
    "time_to_kl": lambda records: ({"time to kl": time_to_kl.table(records)}, {}),
    "memory": lambda records: (scale_tables.memory(records), {}),
    "scale": lambda records: (scale_tables.scale(records), {}),
    "distributed": lambda records: (scale_tables.distributed(records), {}),
}


def insert(text: str, marker: str, content: str) -> str:
    """Replace what stands between ``<!-- marker -->`` and ``<!-- end marker -->``.

    Raises:
        ValueError: the markers are missing.
    """
    begin, end = f"<!-- {marker} -->", f"<!-- end {marker} -->"
    if begin not in text or end not in text:
        raise ValueError(f"the markers {begin!r} and {end!r} are missing")
    return text[: text.index(begin) + len(begin)] + "\n" + content + "\n" + text[text.index(end) :]


def fill(pages: Mapping[Path, str], parts: Mapping[str, str]) -> dict[Path, str]:
    """Put every part between its markers, in all pages that have them.

    Raises:
        ValueError: no page has a part's markers.
    """
    result = dict(pages)
    for name, content in parts.items():
        marker = f"table {name}"
        having = [page for page, text in result.items() if f"<!-- {marker} -->" in text]
        if not having:
            raise ValueError(f"no page has the markers of {marker!r}")
        for page in having:
            result[page] = insert(result[page], marker, content)
    return result


def main() -> None:
    """Rewrite the tables and figures of all boards that have results."""
    pages = {page: page.read_text("utf-8") for page in PAGES}
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, board in BOARDS.items():
        if not (record.RESULTS / f"{name}.json").exists():
            continue
        records = record.load(name)["records"]
        parts, pictures = board(records)
        pages = fill(pages, {**parts, **reproduction.parts(name, records)})
        for title, picture in pictures.items():
            picture.savefig(IMAGES / f"{title}.png", dpi=150)
    for page, text in pages.items():
        page.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
