"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels with 17 levels; they come with the package, no download.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI), the test part.
"""

from __future__ import annotations

import numpy as np
import torch

from .images import Images, Split, held_out

__all__ = ["TEST", "TRAIN", "load"]

#: Pictures in each part of the split.
TRAIN, TEST = 1497, 300
_MAXIMUM = 16
_SEED = 0


def load() -> Split:
    """The digits, 1,497 to learn from and 300 to judge by: always the same ones, drawn once at random.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn; install it: pip install scikit-learn") from error
    bunch = load_digits()
    levels = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return held_out(Images(levels, _MAXIMUM, labels), TEST, _SEED)
