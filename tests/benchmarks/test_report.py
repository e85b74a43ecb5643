"""What the report writes into the pages."""

from pathlib import Path

import pytest

from benchmarks import digits, family_methods, mnist, record, report


def test_insert_replaces_only_between_its_markers() -> None:
    text = "a\n<!-- x -->\nold\n<!-- end x -->\nb"
    assert report.insert(text, "x", "new") == "a\n<!-- x -->\nnew\n<!-- end x -->\nb"
    with pytest.raises(ValueError, match="markers"):
        report.insert(text, "y", "new")


def test_fill_serves_all_pages_that_have_the_markers() -> None:
    marked = "<!-- table x -->\nold\n<!-- end table x -->"
    pages = {Path("a"): marked, Path("b"): "nothing", Path("c"): f"c {marked}"}
    filled = report.fill(pages, {"x": "new"})
    assert filled[Path("a")] == marked.replace("old", "new")
    assert filled[Path("b")] == "nothing"
    assert "new" in filled[Path("c")]
    with pytest.raises(ValueError, match="no page has the markers of 'table y'"):
        report.fill(pages, {"y": "new"})


@pytest.mark.parametrize("name", report.BOARDS)
def test_every_saved_board_has_its_place_and_the_pages_are_up_to_date(name: str) -> None:
    """Figures in the pages are those of the files: nobody edits them by hand or forgets to make them again."""
    if not (record.RESULTS / f"{name}.json").exists():
        pytest.skip(f"no saved results of {name}")
    pages = {page: page.read_text("utf-8") for page in report.PAGES}
    parts, _ = report.BOARDS[name](record.load(name)["records"])
    assert report.fill(pages, parts) == pages


def test_boards_of_pictures_have_a_place_for_every_table() -> None:
    pages = {page: page.read_text("utf-8") for page in report.PAGES}
    rows = [{"target": name, "method": "vae", "seed": 0, "device": "cpu", "ais": -1.0} for name in digits.TARGETS]
    parts, _ = report.BOARDS["digits"](rows)
    assert set(parts) == {"digits 2d", "digits 8d", "digits 16d", "threshold 8d"}
    report.fill(pages, parts)
    rows = [
        {"target": name, "method": "vae", "seed": 0, "device": device, "ais": value}
        for name in mnist.PUBLISHED
        for device, value in (("cpu", -99.0), ("cuda", -85.0))
    ]
    parts, _ = report.BOARDS["mnist"](rows)
    assert len(parts) == 6
    assert ("-99.00" in parts["mnist cpu table 3a"], "-85.00" in parts["mnist cpu table 3a"]) == (True, False)
    assert "-85.0 |" in parts["mnist cuda table 3a"]  # the paper's
    report.fill(pages, parts)


def test_the_familys_page_has_a_place_for_both_targets() -> None:
    rows = [
        {"target": target, "method": method, "seed": 0, "log_likelihood": -1.5}
        for target, methods in family_methods.METHODS.items()
        for method in methods
    ]
    parts, _ = report.BOARDS["family"](rows)
    assert set(parts) == {"family", "family unsure"}
    report.fill({page: page.read_text("utf-8") for page in report.PAGES}, parts)
