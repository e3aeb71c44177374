"""Tensors of a checkpoint that are not read yet, and a bound on what reading them may take."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from epur_emu.errors import ModelError

Array = npt.NDArray[Any]

#: Bytes of a value of each type that weights may have. bfloat16 is widened to float32, exactly.
WEIGHT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

#: Compressed or repeated weights may take so many times the file's size in memory, and no more ...
_RATIO = 16
#: ... but always so many bytes.
_FLOOR = 1 << 20


@dataclass
class Budget:
    """How many bytes the tensors of one file may take.

    Parameters
    ----------
    source : path
    """

    source: Path
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = _FLOOR + _RATIO * self.source.stat().st_size

    def take(self, name: str, nbytes: int) -> None:
        """Count bytes that are about to be read.

        Raises
        ------
        ModelError
            They are more than a file of this size can honestly hold.
        """
        self.left -= nbytes
        if self.left < 0:
            raise ModelError(
                self.source, name, f"takes {nbytes} bytes, far more than the file can hold",
                "give a file that is no decompression bomb",
            )  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor's shape and type, and the way to its values.

    Parameters
    ----------
    shape : tuple of int
    dtype : str
        Numpy's name of the type, or ``bfloat16``, or the file's own name of a type that is neither.
    read : callable
        Gives the array; bfloat16 as uint16.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array]

    def load(self, name: str, budget: Budget) -> Array:
        """The values as float16, float32 or float64.

        Raises
        ------
        ModelError
            They are of another type, damaged, or too many for the file.
        """
        if self.dtype not in WEIGHT_BYTES:
            raise ModelError(
                budget.source, name, f"has dtype {self.dtype}", f"give {', '.join(WEIGHT_BYTES)}"
            )
        if 0 in self.shape:
            raise ModelError(budget.source, name, f"has shape {self.shape}", "give weights")
        budget.take(name, math.prod(self.shape) * WEIGHT_BYTES[self.dtype])
        array = np.asarray(self.read()).reshape(self.shape)
        if self.dtype == "bfloat16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(array.dtype.newbyteorder("="))


def bits(dtype: str) -> np.dtype[Any]:
    """Little-endian numpy type in which values of this type lie in a file."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, opened to be read.

    Raises
    ------
    ModelError
        It can't be.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ModelError(
            path, "file", f"can't be read ({os.strerror(error.errno or 0)})", "give a checkpoint"
        ) from error
    with file:
        yield file
