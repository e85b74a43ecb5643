"""ArviZ containers hold what the posterior drew."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import avbvi
from avbvi import AdversarialELBO, Posterior, export

Y = torch.tensor([1.2, -0.3, 0.8])


def model(y: Tensor | None) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.deterministic("ratio", loc / scale)
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    pyro.clear_param_store()
    elbo = AdversarialELBO(num_particles=64, pretrain_steps=5)
    return avbvi.fit(model, Y, seed=0, steps=20, progress=False, elbo=elbo)


def exported(posterior: Posterior, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    """The container and the draws that it was made of."""
    pyro.set_rng_seed(5)
    draws = posterior.sample(100)
    pyro.set_rng_seed(5)
    return posterior.to_arviz(100, **options), draws


def test_groups(posterior: Posterior) -> None:
    container, draws = exported(posterior)
    group = container["posterior"]
    assert dict(group.sizes) == {"chain": 1, "draw": 100}
    assert set(group.data_vars) == {"loc", "scale", "ratio"}
    for name, value in draws.items():
        np.testing.assert_array_equal(group[name].values[0], value.numpy())
    assert group.attrs["inference_library"] == "avbvi"
    assert group.attrs["verdict"] == posterior.verdict.status
    assert group.attrs["density"] == ("exact" if posterior.elbo_is_exact else "learned")
    np.testing.assert_array_equal(container["observed_data"]["y"].values, Y.numpy())


def test_densities(posterior: Posterior) -> None:
    container, draws = exported(posterior)
    loc, scale = draws["loc"], draws["scale"]
    log_p = dist.Normal(0.0, 2.0).log_prob(loc) + dist.HalfNormal(1.0).log_prob(scale)
    log_p = log_p + dist.Normal(loc[:, None], scale[:, None]).log_prob(Y).sum(-1)
    stats = container["sample_stats"]
    np.testing.assert_allclose(stats["lp"].values[0], log_p.numpy(), rtol=1e-4, atol=1e-4)
    log_q = posterior.log_prob(draws).numpy()
    np.testing.assert_allclose(stats["log_q"].values[0], log_q, rtol=1e-5, atol=1e-5)


def test_predictions(posterior: Posterior) -> None:
    assert "posterior_predictive" not in list(exported(posterior)[0].groups())
    container, _ = exported(posterior, predictive=True)
    assert container["posterior_predictive"]["y"].shape == (1, 100, 3)


def test_summary(posterior: Posterior) -> None:
    container, draws = exported(posterior)
    table = export.import_arviz().summary(container, kind="stats")
    assert list(table.index) == ["loc", "scale", "ratio"]
    assert float(table["mean"]["loc"]) == pytest.approx(float(draws["loc"].mean()), abs=1e-3)


def test_a_new_import_of_arviz_is_silent() -> None:
    """pytest turns warnings into errors, apart from ArviZ's own notice."""
    assert hasattr(export.import_arviz(), "from_dict")


def test_arviz_1_gets_one_dictionary_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group(dict[str, Any]):
        attrs: dict[str, str]

    class ArviZ1:
        __version__ = "1.0.0"

        @staticmethod
        def from_dict(data: dict[str, dict[str, Any]]) -> dict[str, Group]:
            tree = {name: Group(values) for name, values in data.items()}
            for group in tree.values():
                group.attrs = {}
            return tree

    monkeypatch.setattr(export, "import_arviz", lambda: ArviZ1)
    tree = export.to_arviz(
        {"loc": torch.zeros(4, 2)},
        log_q=torch.ones(4),
        log_p=torch.ones(4),
        observed={},
        predictive=None,
        attributes={"verdict": "ok"},
    )
    assert set(tree) == {"posterior", "sample_stats"}
    assert tree["posterior"]["loc"].shape == (1, 4, 2)
    assert tree["posterior"].attrs == {"inference_library": "avbvi", "verdict": "ok"}
