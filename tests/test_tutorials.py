"""The tutorials are kept with results of the code that they show, and the runner finds those that are not."""

import base64
import io
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image

from docs import notebooks

TUTORIALS = sorted(notebooks.TUTORIALS.glob("*.ipynb"))


def png(side: int = 8) -> str:
    kept = io.BytesIO()
    Image.effect_noise((side, side), 60).save(kept, "PNG")
    return base64.b64encode(kept.getvalue()).decode()


def example() -> Any:
    """A notebook in which nothing is wrong."""
    v4 = nbformat.v4
    picture = v4.new_output("display_data", {"image/png": png(), "text/plain": "a picture"})
    cells = [
        v4.new_markdown_cell("# Title"),
        v4.new_code_cell("STEPS = 3000\nSEED = 0", metadata={"tags": ["parameters"]}, execution_count=1),
        v4.new_code_cell("show(STEPS)", execution_count=2, outputs=[picture]),
    ]
    notebook = v4.new_notebook(cells=cells, metadata={"avbvi": {"quick": {"STEPS": 60}}})
    notebooks.normalise(notebook)
    return notebook


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_is_in_order(path: Path) -> None:
    assert list(notebooks.problems(nbformat.read(path, as_version=4))) == []


def test_there_are_tutorials_all_in_the_navigation_and_the_overview() -> None:
    navigation = (notebooks.ROOT / "mkdocs.yml").read_text()
    overview = (notebooks.TUTORIALS / "index.md").read_text()
    assert TUTORIALS
    assert [path.name for path in TUTORIALS if f"tutorials/{path.name}" not in navigation] == []
    assert [path.name for path in TUTORIALS if f"({path.name})" not in overview] == []


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert list(notebooks.problems(example())) == []


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (nbformat.v4.new_output("error", ename="ValueError", evalue="no"), "an error: ValueError: no"),
        (nbformat.v4.new_output("stream", name="stderr", text="UserWarning: look"), "stderr: UserWarning: look"),
        (nbformat.v4.new_output("stream", text="saved to /home/anyone/fit.pt"), "/home/a"),
        (nbformat.v4.new_output("stream", text="<object at 0x7f31c0ffee>"), "0x7f31c0ffee"),
        (nbformat.v4.new_output("stream", text="x" * 50_000), "text of 50000 bytes"),
        (nbformat.v4.new_output("display_data", {"image/png": png(600)}), "image/png of"),
    ],
)
def test_faulty_output_is_found(output: Any, words: str) -> None:
    notebook = example()
    notebook.cells[2].outputs.append(output)
    found = list(notebooks.problems(notebook))
    assert len(found) == 1
    assert "cell 2" in found[0]
    assert words in found[0]


def test_results_of_other_code_are_found() -> None:
    notebook = example()
    notebook.cells[0].source = "# Another title"
    assert list(notebooks.problems(notebook)) == []
    notebook.cells[2].source = "show(2 * STEPS)"
    assert any("make notebooks" in found for found in notebooks.problems(notebook))


def test_cells_out_of_order_and_missing_pictures_are_found() -> None:
    notebook = example()
    notebook.cells[2].execution_count = 7
    notebook.cells[2].outputs = []
    found = "\n".join(notebooks.problems(notebook))
    assert "not executed in order" in found
    assert "no picture" in found


def test_quick_form_replaces_the_parameters_and_leaves_the_notebook() -> None:
    notebook = example()
    short = notebooks.quick_form(notebook)
    names: dict[str, int] = {}
    for cell in short.cells[1:3]:
        exec(cell.source, names)
    assert (names["STEPS"], names["SEED"]) == (60, 0)
    assert len(notebook.cells) == 3


@pytest.mark.parametrize("quick", [{}, {"STEP": 60}])
def test_quick_values_must_be_there_and_replace_something(quick: dict[str, int]) -> None:
    notebook = example()
    notebook.metadata.avbvi["quick"] = nbformat.from_dict(quick)
    with pytest.raises(ValueError, match="parameters"):
        notebooks.quick_form(notebook)
    assert len(list(notebooks.problems(notebook))) == 1


def test_progress_bars_and_traces_of_the_machine_are_left_out() -> None:
    notebook = example()
    bars = " 10%|█  | 00:01<00:09ELBO -3\r100%|███| 00:10<00:00ELBO -2\n"
    notebook.cells[2].outputs.append(nbformat.v4.new_output("stream", name="stderr", text=bars))
    notebook.cells[2].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="a warning"))
    notebook.cells[2].metadata["execution"] = {"iopub.execute_input": "2020-01-01T00:00:00Z"}
    notebook.metadata["language_info"] = {"version": "3.99"}
    notebooks.normalise(notebook)
    assert [output.text for output in notebook.cells[2].outputs if output.get("name") == "stderr"] == ["a warning"]
    assert "execution" not in notebook.cells[2].metadata
    assert "version" not in notebook.metadata.language_info


def test_thumbnail_is_of_the_tagged_cell() -> None:
    notebook = example()
    assert notebooks.thumbnail(notebook) is None
    notebook.cells[2].metadata["tags"] = ["thumbnail"]
    notebook.cells[2].outputs[0].data["image/png"] = png(600)
    small = notebooks.thumbnail(notebook)
    assert small is not None
    assert Image.open(io.BytesIO(small)).size == (300, 300)


def test_a_run_fills_in_results_and_stops_at_an_error(tmp_path: Path) -> None:
    pytest.importorskip("nbclient", reason="running notebooks needs the docs extra")
    pytest.importorskip("ipykernel", reason="running notebooks needs the docs extra")
    path = tmp_path / "small.ipynb"
    notebook = example()
    notebook.cells[
        2
    ].source = (
        "import matplotlib.pyplot as plt\nimport models\nplt.figure(figsize=(1, 1))\nplt.plot([STEPS])\nprint(STEPS)"
    )
    nbformat.write(notebook, path)
    assert notebooks.main([str(path)]) == 0
    kept = nbformat.read(path, as_version=4)
    assert list(notebooks.problems(kept)) == []
    assert "3000\n" in [output.get("text") for output in kept.cells[2].outputs]

    before = path.read_bytes()
    assert notebooks.main(["--quick", str(path)]) == 0
    assert notebooks.main(["--quick", "--limit", "0.001", str(path)]) == 1
    assert path.read_bytes() == before

    kept.cells[2].source = "raise RuntimeError('a broken tutorial')"
    nbformat.write(kept, path)
    with pytest.raises(Exception, match="a broken tutorial"):
        notebooks.main([str(path)])
