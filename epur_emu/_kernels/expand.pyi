from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

_Longs = npt.NDArray[np.int64]
#: Cycle, address, bytes and op of runs; count, address and cycle stride (2, n), None for ones and zeros.
_Runs = tuple[
    _Longs, _Longs, _Longs, npt.NDArray[np.uint8], _Longs | None, _Longs | None, _Longs | None
]

class CrowdedError(Exception): ...

class Expansion:
    def __init__(
        self, streams: _Longs, lanes: Sequence[tuple[int, Callable[[], _Runs | None]]], start: int, stop: int
    ) -> None: ...
    def fill(
        self, cycle: _Longs, component: npt.NDArray[np.int32], op: npt.NDArray[np.uint8], address: _Longs,
        bytes: _Longs,
    ) -> int: ...

def encode(
    cycle: _Longs, address: _Longs, bytes: _Longs, op: npt.NDArray[np.uint8]
) -> tuple[_Longs, _Longs, _Longs, npt.NDArray[np.uint8], _Longs, _Longs, _Longs]: ...
