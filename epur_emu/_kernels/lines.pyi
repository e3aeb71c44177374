from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

DECIMAL: int
HEX: int
WORD: int

def lines(
    columns: Sequence[npt.NDArray[Any]],
    kinds: Sequence[int],
    words: Sequence[Sequence[bytes]],
    before: bytes,
    grouped: bool = False,
    last: int = -1,
) -> bytes: ...
