"""The loader of reference posteriors on a folder of our own: further entries, and everything that can be wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from avbvi import LogDensity
from models import posteriordb as pdb

Data = Mapping[str, Any]


def toy(data: Data, dtype: torch.dtype) -> pdb.Built:
    def log_prob(values: dict[str, Tensor]) -> Tensor:
        return -values["scale"] - values["share"].square().sum(-1)

    sites: pdb.Sites = {"share": (constraints.simplex, (3,)), "scale": (constraints.positive, ())}
    weights = torch.tensor(data["weights"], dtype=dtype)
    if len(weights) != 3:
        raise ValueError("weights must hold 3 numbers")
    return pdb.Built(LogDensity(log_prob, sites=sites), (weights,), sites)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(pdb.MODELS, "own-toy", toy)
    (tmp_path / "own.data.json").write_text('{"weights": [1, 2, 3]}')
    save(tmp_path, share=np.full((4, 6, 3), 1.0 / 3.0), scale=np.arange(1.0, 25.0).reshape(4, 6))
    return tmp_path


def save(folder: Path, **arrays: Any) -> None:
    np.savez(folder / "own-toy.draws.npz", **arrays)


def test_a_further_entry_needs_only_a_builder(own: Path) -> None:
    assert pdb.names(own) == ["own-toy"]
    entry = pdb.load("own-toy", own, dtype=torch.float64)
    assert entry.args[0].dtype == torch.float64
    assert pdb.load("own-toy", own).args[0].dtype == torch.float32
    assert entry.columns == ("share[1]", "share[2]", "log scale")
    torch.testing.assert_close(entry.reference["scale"], torch.arange(1.0, 25.0, dtype=torch.float64))
    assert [half["scale"].tolist() for half in entry.chains] == [list(range(1, 13)), list(range(13, 25))]
    share = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    matrix = entry.matrix({"share": share, "scale": torch.tensor([math.e]), "other": torch.zeros(7)})
    expected = torch.cat([biject_to(constraints.simplex).inv(share)[0], torch.ones(1, dtype=torch.float64)])
    torch.testing.assert_close(matrix[0], expected, rtol=1e-6, atol=1e-6)
    # With an odd number of chains the middle one belongs to neither half.
    save(own, share=np.full((3, 1, 3), 1.0 / 3.0), scale=np.arange(1.0, 4.0).reshape(3, 1))
    assert [half["scale"].tolist() for half in pdb.load("own-toy", own).chains] == [[1.0], [3.0]]


def test_errors_of_matrix(own: Path) -> None:
    entry = pdb.load("own-toy", own)
    share, scale = torch.full((2, 3), 1.0 / 3.0), torch.ones(2)
    with pytest.raises(ValueError, match=r"lack the site 'scale' of own-toy; found \['share'\]"):
        entry.matrix({"share": share})
    with pytest.raises(ValueError, match=r"draws\['share'\] must have shape \(n, 3\).*got \(2, 2\)"):
        entry.matrix({"share": share[:, :2], "scale": scale})
    with pytest.raises(ValueError, match=r"draws\['scale'\] must have shape .* same n .* got \(1,\)"):
        entry.matrix({"share": share, "scale": scale[:1]})
    with pytest.raises(ValueError, match=r"draws\['scale'\] has values outside its support"):
        entry.matrix({"share": share, "scale": -scale})


def test_missing_files(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"No folder of reference posteriors .*AVBVI_POSTERIORDB"):
        pdb.folder(own / "nowhere")
    monkeypatch.setenv("AVBVI_POSTERIORDB", str(own / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        pdb.names()
    monkeypatch.setenv("AVBVI_POSTERIORDB", str(own))
    assert pdb.folder() == own
    with pytest.raises(FileNotFoundError, match=r"No draws of 'own-other' .* \['own-toy'\]"):
        pdb.load("own-other")
    (own / "own.data.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"No data of 'own-toy' at .*own\.data\.json"):
        pdb.load("own-toy")


def test_an_entry_without_a_model_says_how_to_add_one(own: Path) -> None:
    (own / "own-toy.draws.npz").rename(own / "own-other.draws.npz")
    with pytest.raises(LookupError, match=r"No model for the posterior 'own-other'.*MODELS\['own-other'\] = builder"):
        pdb.load("own-other", own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weights": [1, 2', "is no JSON"),
        ('{"weight": [1, 2, 3]}', "does not fit the model 'own-toy': no entry 'weights'"),
        ('{"weights": [1, 2]}', "does not fit the model 'own-toy': weights must hold 3 numbers"),
        ("[1, 2]", "does not fit the model 'own-toy'"),
    ],
)
def test_unusable_data(own: Path, text: str, message: str) -> None:
    (own / "own.data.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        pdb.load("own-toy", own)


@pytest.mark.parametrize("length", [0, 100, -40])
def test_truncated_draws(own: Path, length: int) -> None:
    file = own / "own-toy.draws.npz"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"own-toy\.draws\.npz can't be read as npz .*truncated"):
        pdb.load("own-toy", own)


def test_damaged_draws(own: Path) -> None:
    file = own / "own-toy.draws.npz"
    content = bytearray(file.read_bytes())
    content[200:220] = bytes(20)
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="can't be read as npz"):
        pdb.load("own-toy", own)


def test_draws_of_wrong_content(own: Path) -> None:
    share, scale = np.full((4, 6, 3), 1.0 / 3.0), np.ones((4, 6))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"share": share}, r"lacks the array 'scale'; it holds \['share'\]"),
        ({"share": share[..., :2], "scale": scale}, r"'share' must have shape \(chains, draws, 3\)"),
        ({"share": share, "scale": scale[:, :5]}, r"'scale' must have shape .* found \(4, 5\)"),
        ({"share": share, "scale": scale[0]}, r"'scale' must have shape .* found \(6,\)"),
        ({"share": share[:1], "scale": scale[:1]}, "at least two chains"),
        ({"share": share[:, :0], "scale": scale[:, :0]}, "must have shape"),
        ({"share": share, "scale": -scale}, "'scale' has values outside its support"),
        ({"share": share, "scale": scale * np.nan}, "'scale' has values outside its support"),
        ({"share": share, "scale": scale * np.inf}, "'scale' has values outside its support"),
    ]
    for arrays, message in cases:
        save(own, **arrays)
        with pytest.raises(ValueError, match=message):
            pdb.load("own-toy", own)
