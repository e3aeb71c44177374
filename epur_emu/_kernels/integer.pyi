from typing import Final

import numpy as np
import numpy.typing as npt

LEVELS: Final[tuple[str, ...]]
BLOCK: Final[int]
OVERFLOW: Final[dict[str, int]]

_Counts = npt.NDArray[np.int64]

def dot(
    level: int,
    codes: npt.NDArray[np.uint8],
    energy: npt.NDArray[np.float64],
    narrow: bool,
    largest_w: int,
    largest_x: int,
    x: npt.NDArray[np.int16],
    acc: npt.NDArray[np.int32],
    widths: npt.NDArray[np.int32],
    back: bool,
    seen: _Counts,
) -> None: ...
def input_codes(
    level: int,
    x: npt.NDArray[np.float32],
    codes: npt.NDArray[np.int16],
    largest: int,
    alpha: float,
    seen: _Counts,
) -> None: ...
