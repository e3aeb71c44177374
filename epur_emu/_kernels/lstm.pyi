from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

LEVELS: Final[tuple[str, ...]]
MOST_PARTS: Final[int]

_F32 = npt.NDArray[np.float32]
_F64 = npt.NDArray[np.float64]
_Sums = npt.NDArray[np.int32] | None
_Counts = npt.NDArray[np.int64]
_Room = npt.NDArray[np.int8]

class Crew:
    def __init__(self, parts: int) -> None: ...
    def assist(self, part: int) -> None: ...
    def dismiss(self) -> None: ...

class Pass:
    def __init__(
        self,
        level: int,
        counted: bool,
        cells: int,
        blocks: int,
        subs_x: int,
        key: int,
        units: Sequence[tuple[Any, ...]],
        groups: Sequence[Mapping[str, Any]],
        bias: _F32,
        peep: _F32 | None,
        mu: Mapping[str, Any] | None,
        output: tuple[Any, ...] | None,
    ) -> None: ...
    def lend(
        self, arrays: Sequence[npt.NDArray[np.uint8]], begin: int, end: int
    ) -> None: ...
    def room(self, nv: int, parts: int = 1) -> int: ...
    def forward(
        self,
        x: _F32,
        sums: _F32,
        isums: _Sums,
        bound: _F64,
        first: int,
        stride: int,
        counts: _Counts,
        raised: _Counts,
        crew: Crew | None,
        room: _Room,
    ) -> None: ...
    def convert(self, sums: _F32, isums: _Sums, first: int, counts: _Counts) -> None: ...
    def step(
        self,
        sums: _F32,
        isums: _Sums,
        bound: _F64,
        h: _F32,
        c: _F32,
        first: int,
        stride: int,
        counts: _Counts,
        raised: _Counts,
        room: _Room,
    ) -> None: ...
    def recurrent(
        self,
        sums: _F32,
        isums: _Sums,
        bound: _F64,
        separate: bool,
        h: _F32,
        c: _F32,
        out: _F32,
        reverse: bool,
        first: int,
        counts: _Counts,
        raised: _Counts,
        crew: Crew | None,
        room: _Room,
    ) -> None: ...
    def multifunctional(self, sums: _F32, c: _F32, h: _F32, first: int, counts: _Counts) -> int: ...

def activation_table(
    one: tuple[Any, ...], tangent: int, store: int
) -> npt.NDArray[np.uint32] | None: ...
