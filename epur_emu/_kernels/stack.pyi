from typing import Final

import numpy as np
import numpy.typing as npt

LEVELS: Final[tuple[str, ...]]

_Longs = npt.NDArray[np.int64]
_Ints = npt.NDArray[np.int32]

class Stack:
    def __init__(
        self,
        level: int,
        most_bytes: int,
        threshold: int = 0,
        most_lines: int = 0,
        window: int = 0,
        windows: int = 0,
    ) -> None: ...
    def feed(
        self,
        cycle: _Longs,
        component: _Ints,
        address: _Longs,
        bytes: _Longs,
        rank: _Longs,
        shift: int,
        weight: int,
    ) -> None: ...
    @property
    def requests(self) -> int: ...
    @property
    def cold(self) -> int | npt.NDArray[np.float64]: ...
    @property
    def live(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def counts(self) -> npt.NDArray[np.uint64] | npt.NDArray[np.float64]: ...
    @property
    def times(self) -> npt.NDArray[np.uint64]: ...
    @property
    def windows(self) -> npt.NDArray[np.uint64]: ...

class Cache:
    def __init__(
        self, level: int, most_bytes: int, policy: int, sets: int, ways: int
    ) -> None: ...
    def feed(
        self,
        cycle: _Longs,
        component: _Ints,
        address: _Longs,
        bytes: _Longs,
        rank: _Longs,
        shift: int,
        weight: int,
    ) -> None: ...
    @property
    def requests(self) -> int: ...
    @property
    def misses(self) -> int: ...

def bank_conflicts(
    cycle: _Longs,
    component: _Ints,
    address: _Longs,
    bytes: _Longs,
    unit: _Longs,
    banks: _Longs,
    first: _Longs,
    last: _Longs,
    conflicts: _Longs,
) -> None: ...
