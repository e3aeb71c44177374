from collections.abc import Iterable
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

MAX_LOOPS: int
MAX_NAME: int
BOUND: int

S = TypeVar("S", bound="Stream")

class Stream:
    component: str
    op: str
    bytes: int
    address: int
    cycle: int
    loops: tuple[tuple[int, int, int], ...]
    accesses: int
    span: int
    def __init__(
        self, component: str, op: str, bytes: int, address: int, cycle: int,
        loops: Iterable[tuple[int, int, int]] = (),
    ) -> None: ...
    def at(self, component: str) -> Self: ...
    def __hash__(self) -> int: ...

def table(
    out: npt.NDArray[np.void], first: int, phase: int, streams: Iterable[Stream], place: dict[str, int]
) -> tuple[int, int]: ...
def moved(
    streams: Iterable[S], regions: list[tuple[str, int, int, int]], cycles: int
) -> list[S]: ...
def sums(streams: Iterable[Stream]) -> dict[tuple[str, str], tuple[int, int]]: ...
