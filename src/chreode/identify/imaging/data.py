"""Images and their classes: checked, parted, and some to try things on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int
from sklearn.datasets import load_digits

from ...errors import DataError, counted, listed
from .augment import SIDE

#: Where, on the way from 0 to 1, the training and the validation images end; what is left is for the test.
ENDS = (0.6, 0.8)
#: Fewest images of a class that leave one to every part.
FEWEST = 4


class Parts(NamedTuple):
    """Rows to learn from, to choose by, and to be tested on once."""

    train: Int[np.ndarray, " n"]
    validation: Int[np.ndarray, " m"]
    test: Int[np.ndarray, " t"]


def digits() -> tuple[Float32[np.ndarray, "1797 3 32 32"], Int[np.ndarray, " 1797"]]:
    """Return scikit-learn's 1,797 handwritten digits as images of 32 x 32 pixels, and which digits they are.

    The 8 x 8 pixels are interpolated bilinearly, and the three channels are equal.

    References
    ----------
    Alpaydin and Kaynak (1998), Optical recognition of handwritten digits, UCI Machine Learning Repository.

    Examples
    --------
    >>> x, y = digits()
    >>> x.shape, float(x.max()), sorted(set(y.tolist())) == list(range(10))
    ((1797, 3, 32, 32), 1.0, True)
    """
    found = load_digits()
    small = torch.tensor(found.images[:, None] / 16, dtype=torch.float32)
    large = F.interpolate(small, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return large.expand(-1, 3, -1, -1).numpy().copy(), found.target


def parts(classes: Int[np.ndarray, " n"], seed: int) -> Parts:
    """Return three fifths, a fifth and a fifth of every class, drawn at random.

    Examples
    --------
    >>> [len(rows) for rows in parts(np.array([0] * 5 + [1] * 10), seed=0)]
    [9, 3, 3]
    """
    drawn = np.random.default_rng([seed, 18]).random(len(classes))
    order = np.lexsort((drawn, classes))
    sizes = np.bincount(classes)
    rank = np.arange(len(classes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    part = np.searchsorted(ENDS, (rank + 0.5) / sizes[classes[order]], side="right")
    return Parts(*(np.sort(order[part == k]) for k in range(3)))


def check(
    x: Any, y: Any
) -> tuple[Float32[np.ndarray, "n 3 32 32"], Int[np.ndarray, " n"], list[str]]:
    """Return images in float32, their classes as numbers from 0, and the names of the classes.

    Raises
    ------
    DataError
        If images have another shape or values outside of [0, 1], labels do not match them, or a class has
        too few images.
    """
    x, y = np.asarray(x), np.asarray(y)
    _refuse_images(x)
    if y.shape != (len(x),):
        raise DataError(
            f"y has the shape {y.shape} beside {counted(len(x), 'image')}: expected one label for each."
        )
    if lacking := int(pd.isna(y).sum()):
        raise DataError(f"y has no label for {counted(lacking, 'image')}: leave out what has none.")
    names, codes = np.unique(y.astype(str), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"y tells {counted(len(names), 'class')}: a probe needs two at the least.")
    few = names[np.bincount(codes) < FEWEST]
    if len(few):
        raise DataError(
            f"These classes have fewer than {counted(FEWEST, 'image')}: {listed(few)}. Training, validation "
            "and test need one each at the least. Leave those classes out."
        )
    return x.astype(np.float32), codes.astype(np.int64), [str(name) for name in names]


def _refuse_images(x: np.ndarray) -> None:
    if x.dtype.kind not in "buif":
        raise DataError(f"x holds values of type {x.dtype}: expected numbers from 0 to 1.")
    if x.shape[1:] != (3, SIDE, SIDE):
        raise DataError(
            f"x has the shape {x.shape}: expected images x 3 channels x {SIDE} x {SIDE} pixels. "
            "Images that have their channels last are brought into order by x.transpose(0, 3, 1, 2)."
        )
    if not len(x):
        raise DataError("x holds no images.")
    if not np.isfinite(x).all():
        raise DataError("x holds values that are not finite: leave those images out.")
    if x.min() < 0 or x.max() > 1:
        raise DataError(
            f"x holds values from {x.min():.4g} to {x.max():.4g}: expected 0 to 1. Divide bytes by 255."
        )
