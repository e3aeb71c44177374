"""Products with a large matrix of the host, for a few rows of each of several items."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

#: Elements of a tile: 256 KiB stay in a core's cache while all items read them.
TILE = 65536


class Dense:
    """``W x + b`` in float32.

    Each product takes one item's rows at a time, so that a sum does not depend on which other items
    are there: matrix products of different sizes may differ in their last bits.

    Parameters
    ----------
    weight : float array of shape (O, I)
    bias : float array of shape (O,)
    """

    def __init__(self, weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating]) -> None:
        outputs, inputs = weight.shape
        width = max(16, TILE // inputs // 16 * 16)
        self._tiles = [
            (slice(at, at + width), np.ascontiguousarray(weight[at : at + width].T, np.float32))
            for at in range(0, outputs, width)
        ]
        self._bias = np.asarray(bias, np.float32)

    def __call__(self, x: F32) -> F32:
        """Products with rows (S, k, I) of S items: (S, k, O)."""
        out = np.empty((*x.shape[:-1], len(self._bias)), np.float32)
        for columns, tile in self._tiles:
            np.matmul(x, tile, out=out[..., columns])
        out += self._bias
        return out
