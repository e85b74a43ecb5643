"""Run the tutorials: in full, with their results written into the files, or in their quick form.

A tutorial is a notebook of ``docs/tutorials`` that is kept with its results. Its cell tagged ``parameters`` holds the
numbers that make it long (``STEPS = 3000``); the notebook's metadata hold what replaces them in the quick form::

    "avbvi": {"quick": {"STEPS": 60}, "executed": "..."}

``executed`` is a hash of the code that gave the results, so that results of other code are found (:func:`problems`).
"""

from __future__ import annotations

import argparse
import ast
import base64
import copy
import hashlib
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
IMAGES = ROOT / "docs" / "images"
#: What a run may take, in seconds of processor time: that other programs delay it is no fault of the tutorial.
MOST_SECONDS, MOST_SECONDS_QUICK = 180.0, 60.0
MOST_IMAGE_BYTES, MOST_TEXT_BYTES = 150 * 1024, 40 * 1024
THUMBNAIL = (480, 300)
# Run before the first cell, silently. ArviZ 0.23 announces version 1.0 once a day; tqdm misses a package for its bars.
SETUP = r"""
import warnings
warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
warnings.filterwarnings("ignore", "IProgress not found")
%matplotlib inline
%config InlineBackend.print_figure_kwargs = {"dpi": 120, "bbox_inches": "tight"}
"""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}
BAR = re.compile(r"[^\r\n]*?\d+%\|[^\r\n]*")
OF_THE_MACHINE = re.compile(r"/(?:home|root|tmp|work|usr|Users|opt)/[\w.]|site-packages|0x[0-9a-f]{6,}")


def code_hash(notebook: Any) -> str:
    """A hash of all code cells, by which results of other code are found."""
    sources = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def quick_form(notebook: Any) -> Any:
    """A copy in which the quick values replace those of the cell tagged ``parameters``.

    Raises:
        ValueError: there is not one such cell, no quick value, or one for a name that the cell does not assign.
    """
    quick = notebook.metadata.get("avbvi", {}).get("quick", {})
    at = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    if len(at) != 1 or not quick:
        raise ValueError(
            f"a tutorial needs one cell tagged parameters and quick values for it, found {len(at)}, {quick}"
        )
    assigned = {
        target.id
        for statement in ast.parse(notebook.cells[at[0]].source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    if unknown := sorted(set(quick) - assigned):
        raise ValueError(f"quick values for {unknown}, which the cell tagged parameters does not assign: {assigned}")
    short = copy.deepcopy(notebook)
    source = "\n".join(f"{name} = {value!r}" for name, value in quick.items())
    short.cells.insert(at[0] + 1, nbformat.v4.new_code_cell(source))
    return short


def run(notebook: Any, seconds: float) -> None:
    """Execute all cells in place, in a folder of their own; an error or an overlong cell raises."""
    from nbclient import NotebookClient  # of the docs extra; the checks below do without

    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    environment |= {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MPLBACKEND")}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=round(3 * seconds), resources={"metadata": {"path": folder}}, record_timing=False
        )
        manager = client.create_kernel_manager()
        if os.name == "posix":
            manager.transport, manager.ip = "ipc", os.path.join(folder, "kernel")
        with client.setup_kernel(env=environment):
            assert client.kc is not None
            client.kc.execute(SETUP, silent=True, store_history=False)
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)


def normalise(notebook: Any) -> None:
    """Leave out what differs between machines and runs of the same code; store the code's hash."""
    notebook.metadata = nbformat.from_dict({**METADATA, "avbvi": notebook.metadata.get("avbvi", {})})
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_bar(output)]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = _smaller(output.data["image/png"])
    notebook.metadata.avbvi["executed"] = code_hash(notebook)


def problems(notebook: Any) -> Iterator[str]:
    """What is wrong with a notebook as it is kept, in words."""
    try:
        nbformat.validate(notebook)
        quick_form(notebook)
    except (nbformat.ValidationError, ValueError) as error:
        yield str(error)
    if notebook.metadata.get("avbvi", {}).get("executed") != code_hash(notebook):
        yield "the results are not those of the code as it is: run make notebooks"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "the cells were not executed in order, from a fresh start"
    if not any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs):
        yield "there is no picture"
    yield from faults(notebook)
    for cell in code:
        for output in cell.outputs:
            size = len(base64.b64decode(output.get("data", {}).get("image/png", "")))
            if size > MOST_IMAGE_BYTES:
                yield f"cell {cell.execution_count}: image/png of {size} bytes"


def faults(notebook: Any) -> Iterator[str]:
    """What is wrong with the results of whatever run: errors, warnings, floods of text, traces of the machine."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield from (f"cell {cell.execution_count}: {fault}" for fault in _faults(output))


def _faults(output: Any) -> Iterator[str]:
    if output.output_type == "error":
        yield f"an error: {output.ename}: {output.evalue}"
    if output.get("name") == "stderr":
        yield f"output on stderr: {output.text[:200]}"
    for kind, content in {"text": output.get("text", ""), **output.get("data", {})}.items():
        text = "" if kind == "image/png" else str(content)
        if len(text) > MOST_TEXT_BYTES:
            yield f"{kind} of {len(text)} bytes"
        if found := OF_THE_MACHINE.search(text):
            yield f"something of this machine or run, {found[0]!r}, in {kind}"


def _is_bar(output: Any) -> bool:
    """Whether an output is nothing but a progress bar."""
    if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
        return True
    return output.get("name") == "stderr" and not BAR.sub("", output.text).strip()


def _smaller(png: str, within: tuple[int, int] | None = None) -> str:
    """The picture with a palette of 256 colours, scaled down to a width and height."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if within is not None:
        picture.thumbnail(within)
    kept = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(kept, "PNG", optimize=True)
    return base64.b64encode(kept.getvalue()).decode()


def thumbnail(notebook: Any) -> bytes | None:
    """A small PNG of the picture of the cell tagged ``thumbnail``; ``None`` where there is none."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "thumbnail" in cell.metadata.get("tags", []) and "image/png" in output.get("data", {}):
                return base64.b64decode(_smaller(output.data["image/png"], THUMBNAIL))
    return None


def _processor_seconds() -> float:
    """What the processes that were started here, and have ended, have used."""
    times = os.times()
    return times.children_user + times.children_system


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the notebooks named, or all; 0 if each ended in time and without a problem."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="notebooks; by default all tutorials")
    parser.add_argument("--quick", action="store_true", help="the quick form; the files stay as they are")
    parser.add_argument("--limit", type=float, metavar="S", help="seconds that each may take")
    options = parser.parse_args(arguments)
    limit = options.limit or (MOST_SECONDS_QUICK if options.quick else MOST_SECONDS)
    failed = False
    for path in options.paths or sorted(TUTORIALS.glob("*.ipynb")):
        kept = nbformat.read(path, as_version=4)
        notebook = quick_form(kept) if options.quick else kept
        started, used = time.monotonic(), _processor_seconds()
        run(notebook, limit)
        elapsed, seconds = time.monotonic() - started, _processor_seconds() - used
        normalise(notebook)
        if not options.quick:
            nbformat.write(notebook, path)
            if picture := thumbnail(notebook):
                (IMAGES / f"tutorial_{path.stem}.png").write_bytes(picture)
        found = list(faults(notebook) if options.quick else problems(notebook))
        if seconds > limit:
            found.append(f"at most {limit:.0f} seconds of processor time are allowed")
        failed |= bool(found)
        print(f"{path.name}: {elapsed:.0f} s, {seconds:.0f} s of processor time", *found, sep="\n  ", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
