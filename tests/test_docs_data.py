"""What the code of docs/data.md leaves behind, and the names that the page uses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import avbvi
from avbvi.data.tensor_loader import TensorLoader
from tests.page_code import ROOT, run

PAGE = ROOT / "docs" / "data.md"


@pytest.mark.filterwarnings("ignore::tqdm.TqdmWarning")
def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    after = run(PAGE, {})
    assert len(after) == 4
    kept = [names["posterior"] for names in after]
    assert len({id(posterior) for posterior in kept}) == 3
    for posterior in kept:
        assert isinstance(posterior, avbvi.AmortisedPosterior)
        assert posterior.run.steps == 20
    assert " ± " in capsys.readouterr().out
    np.testing.assert_array_equal(np.load("large.npy"), np.tile(after[-1]["x"], (5, 1)))


def test_it_names_what_there_is() -> None:
    text = PAGE.read_text("utf-8")
    for name in set(re.findall(r"`(\w+)[`(]", text)):
        if name.endswith(("Loader", "Sampler", "Dataset")) and name[0].isupper():
            known = hasattr(avbvi, name) or name in ("DataLoader", "IterableDataset", "StatefulDataLoader")
            assert known or name in ("Dataset", "RandomSampler"), name
    assert issubclass(TensorLoader, avbvi.TensorLoader)
