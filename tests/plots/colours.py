"""How colours look to colour-blind readers, and how far apart they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb

#: Linear RGB as seen without one kind of cone (severity 1).
#: Source: Machado, Oliveira and Fernandes (2009), IEEE Trans. Vis. Comput. Graph. 15(6), table 1.
VISION = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
#: Linear sRGB to CIE XYZ, and the white of D65.
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = XYZ.sum(1)


def linear(colours: Sequence[str]) -> np.ndarray:
    """Linear RGB (n, 3)."""
    c = np.array([to_rgb(colour) for colour in colours])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab of linear RGB (n, 3)."""
    t = np.clip(rgb, 0.0, 1.0) @ XYZ.T / WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)


def least_distance(colours: Sequence[str], vision: str) -> float:
    """Least distance in Lab between two of the colours as seen by such eyes; 2.3 is just noticeable."""
    seen = lab(linear(colours) @ VISION[vision].T)
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    return float(distances[np.triu_indices(len(seen), 1)].min())


def contrast(colour: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.1)."""
    a, b = sorted(linear([colour, other]) @ XYZ[1])
    return float((b + 0.05) / (a + 0.05))
