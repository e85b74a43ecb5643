"""Tables and sheets of the picture boards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import image_figures, image_tables
from benchmarks.image_models import AVB


def row(method: str, seed: int, ais: float, **others: Any) -> dict[str, Any]:
    return {"target": "t", "method": method, "seed": seed, "ais": ais, "parameters": 100, **others}


RECORDS = [
    row("vae", 0, -85.0),
    row("vae", 1, -85.4),
    row(AVB, 0, -84.0, elbo=-86.0, elbo_exact=-86.2, elbo_exact_upper=-86.1, ahead_of_vae=1.0, ahead_of_vae_stderr=0.1),
    row(AVB, 1, -84.4, elbo=-86.0, elbo_exact=-86.4, elbo_exact_upper=-86.3, ahead_of_vae=1.1, ahead_of_vae_stderr=0.1,
        verdict="suspect"),
    {"target": "t", "method": "iaf-vae", "seed": 0, "error": "ValueError: lost"},
    {**row("vae", 0, -10.0), "target": "u"},
]  # fmt: skip


def test_a_row_per_method_with_its_differences_and_failures() -> None:
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in image_tables.evidence(RECORDS, "t", {"vae": "-85.0"}).splitlines()
    ]
    table = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert set(table) == {"VAE", "VAE with IAF", "AVB, adaptive contrast"}
    assert table["VAE"]["log p(x), AIS"] == "-85.20 (-85.40 to -85.00)"
    assert table["VAE"]["published"] == "-85.0"
    assert table["VAE"]["ahead of the VAE, by seed"] == "-"
    mine = table["AVB, adaptive contrast"]
    assert mine["ahead of the VAE, by seed"] == "+1.00 ± 0.10, +1.10 ± 0.10"
    assert mine["remarks"] == "its own ELBO is off by +0.30 (+0.20 to +0.40); verdict 1 x suspect"
    assert mine["published"] == "-"
    assert table["VAE with IAF"]["remarks"] == "failed 1 x: ValueError: lost"
    assert "log p(x), quadrature" not in lines[0]


@pytest.mark.parametrize(
    ("differences", "stderr", "expected"),
    [
        ((1.0, 1.1), 0.1, "ahead"),
        ((-1.0, -1.1), 0.1, "behind"),
        ((0.1, 0.2), 0.1, "tie"),  # within the error over pictures
        ((1.0, -0.8, 1.0), 0.1, "tie"),  # within the error over seeds: .4 ± .6
        ((0.3,), 0.1, "ahead"),
    ],
)
def test_order(differences: tuple[float, ...], stderr: float, expected: str) -> None:
    rows = [row(AVB, i, 0.0, ahead_of_vae=d, ahead_of_vae_stderr=stderr) for i, d in enumerate(differences)]
    assert image_tables.order(rows, "t", AVB) == expected
    assert image_tables.order(rows, "u", AVB) == "-"


def test_pictures_are_tiled_in_rows_with_gaps() -> None:
    pictures = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    grid = image_figures.tiled(pictures, (1, 1, 2), columns=2)
    expected = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0], [1.0] * 5, [0.5, 0.5, 1.0, 1.0, 1.0]])
    assert torch.equal(grid, expected)
    colours = image_figures.tiled(torch.tensor([[0.2, 0.3, 0.4]]), (3, 1, 1), columns=1)
    assert torch.equal(colours, torch.tensor([[[0.2, 0.3, 0.4]]]))


def test_a_sheet_has_three_panels() -> None:
    sheet = {
        "data": torch.zeros(4, 9),
        "reconstructions": torch.ones(4, 9),
        "samples": torch.zeros(8, 9),
        "interpolations": torch.zeros(2, 5, 9),
    }
    figure = image_figures.sheet(sheet, (1, 3, 3))
    shown = [ax.images[0].get_array() for ax in figure.axes]
    assert [image.shape for image in shown] == [(7, 15), (7, 15), (7, 19)]
    assert float(shown[0][:3].min()) == 1.0  # no ink in the data
    assert float(shown[0][4:, :3].max()) == 0.0  # reconstructions all ink
    # A model without an encoder: rows as long as in the other sheet.
    del sheet["data"], sheet["reconstructions"]
    figure = image_figures.sheet(sheet, (1, 3, 3))
    assert [ax.get_title() for ax in figure.axes] == ["samples", "interpolations"]
    assert [ax.images[0].get_array().shape for ax in figure.axes] == [(7, 15), (7, 19)]
