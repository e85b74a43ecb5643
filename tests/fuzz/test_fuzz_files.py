"""Files: what is not a whole fit of this model is refused, and nothing else is ever read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import avbvi
from tests.fuzz import cases
from tests.fuzz.cases import check


def model() -> None:
    """Two sites and one observation."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    pyro.sample("y", dist.Normal(x[..., 0], scale), obs=torch.tensor(0.3))


@pytest.fixture(scope="module")
def posterior() -> avbvi.Posterior:
    """A fit of a few steps with small networks."""
    pyro.clear_param_store()
    guide = avbvi.AVBGuide(
        model,
        trunk=avbvi.FlowTrunk(1, (4,)),
        sampler=avbvi.ResidualSampler(4, 1),
        adversary=avbvi.ResidualAdversary(4, 1),
    )
    elbo = avbvi.AdversarialELBO(num_particles=16, pretrain_steps=1)
    return avbvi.fit(model, guide=guide, seed=0, steps=3, elbo=elbo, progress=False)


@given(path=cases.NO_PATH)
def test_paths_that_are_none(posterior: avbvi.Posterior, path: Any) -> None:
    check("files", lambda: posterior.save(path), "path")
    check("files", lambda: avbvi.load(path, model), "path")
    check("files", lambda: posterior.report(path), "path")


def test_places_without_a_file(posterior: avbvi.Posterior, tmp_path: Path) -> None:
    check("files", lambda: posterior.save(tmp_path / "none" / "fit.pt"), "folder")
    check("files", lambda: posterior.save(tmp_path), "folder")
    check("files", lambda: posterior.save(tmp_path / "fit.pt", report="yes"), "report")  # type: ignore[arg-type]
    check("files", lambda: posterior.report(tmp_path / "none" / "page.html"), "folder")
    check("files", lambda: posterior.report(tmp_path), "folder")
    check("files", lambda: posterior.report(tmp_path / "page.txt"), "page.txt", ".html")
    check("files", lambda: avbvi.load(tmp_path / "none.pt", model), "none.pt")
    check("files", lambda: avbvi.load(tmp_path, model), str(tmp_path))


@pytest.fixture(scope="module")
def whole(posterior: avbvi.Posterior, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved fit."""
    path = tmp_path_factory.mktemp("fit") / "whole.pt"
    posterior.save(path)
    return path


@given(content=st.binary(max_size=200))
def test_files_that_are_no_fit(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    path.write_bytes(content)
    check("files", lambda: avbvi.load(path, model), "fit.pt")


@given(share=st.floats(0.0, 1.0, exclude_max=True))
def test_files_cut_short(whole: Path, share: float, tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    content = whole.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    check("files", lambda: avbvi.load(path, model), "fit.pt", "damaged")


FOREIGN = [
    {},
    [],
    3,
    None,
    {"format": "other"},
    {"format": "avbvi-posterior"},
    {"format": "avbvi-posterior", "version": 99},
    {"format": "avbvi-posterior", "version": "1"},
    {"format": "avbvi-checkpoint", "version": 1},
]


@pytest.mark.parametrize("content", FOREIGN, ids=repr)
def test_files_of_something_else(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    torch.save(content, path)
    check("files", lambda: avbvi.load(path, model), "fit.pt")


KEYS = (
    *("parts", "own_context", "sites", "guide", "model", "buffers", "verdict", "run", "comparison", "vectorize"),
    *("evidence", "report"),
)
#: Entries of which there may be none.
OPTIONAL = ("comparison", "report")


WRONG = [None, 3, "text", [1], {"a": 1}, {1: 2}, {"trunk": {"class": "os.system"}}, "absent"]


@pytest.mark.parametrize(("key", "value"), [(k, v) for k in KEYS for v in WRONG if not (k in OPTIONAL and v is None)])
def test_files_with_a_wrong_entry(whole: Path, key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    content = torch.load(whole, weights_only=True)
    if value == "absent":
        del content[key]
    else:
        content[key] = value
    torch.save(content, path)
    check("files", lambda: avbvi.load(path, model), "fit.pt")


@given(content=st.binary(max_size=200))
def test_checkpoints_that_are_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    path.write_bytes(content)
    check("files", lambda: avbvi.fit(model, steps=2, checkpoint=path, progress=False), "run.pt", "damaged")


@pytest.mark.parametrize("content", FOREIGN, ids=repr)
def test_checkpoints_of_something_else(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    torch.save(content, path)
    check("files", lambda: avbvi.fit(model, steps=2, checkpoint=path, progress=False), "run.pt")


def test_a_fit_of_another_model(whole: Path, tmp_path: Path) -> None:
    def other() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    path = tmp_path / "fit.pt"
    path.write_bytes(whole.read_bytes())
    check("files", lambda: avbvi.load(path, other), "fit.pt", "another model", "scale")
    check("files", lambda: avbvi.load(path, "model"), "model", "callable")
    check("files", lambda: avbvi.load(path, model, guide="mine"), "guide", "AVBGuide")
    check("files", lambda: avbvi.fit(model, steps=2, checkpoint=path, progress=False), "fit.pt", "avbvi-checkpoint")


@given(where=st.floats(0.0, 1.0, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_never_changes_a_fit(
    posterior: avbvi.Posterior, whole: Path, where: float, bit: int, tmp_path: Path
) -> None:
    """Either the file is refused, or what is read is what was saved (the bit was in a part that says nothing)."""
    path = tmp_path / "fit.pt"
    damaged = bytearray(whole.read_bytes())
    damaged[int(where * len(damaged))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        loaded = avbvi.load(path, model)
    except Exception as error:
        cases.assert_clear(error, "fit.pt")
        return
    for name, value in posterior.guide.state_dict().items():
        assert torch.equal(value, loaded.guide.state_dict()[name]), name
    assert loaded.verdict == posterior.verdict
    assert vars(loaded.run) == vars(posterior.run)


def test_checkpoints_that_lack_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"

    def run() -> avbvi.Posterior:
        elbo = avbvi.AdversarialELBO(num_particles=16, pretrain_steps=1)
        trunk, adversary = avbvi.AffineTrunk(), avbvi.MLPAdversary((4,))
        guide = avbvi.AVBGuide(model, trunk=trunk, sampler=avbvi.MLPSampler((4,)), adversary=adversary)
        return avbvi.fit(model, guide=guide, seed=0, steps=2, elbo=elbo, checkpoint=path, progress=False)

    run()
    content = torch.load(path, weights_only=True)
    for key in content:
        torch.save({k: v for k, v in content.items() if k != key}, path)
        check("files", run, "run.pt")
