"""The contract of a memory model, what it may know beforehand, and what it gives."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import h5py
import numpy as np
import numpy.typing as npt

from epur_emu.accelerator import Accelerator, presets
from epur_emu.errors import AcceleratorError
from epur_emu.streams import Component
from epur_emu.trace import Accesses, Trace
from epur_emu.trace.files import written

R = TypeVar("R", covariant=True)

#: Is told how many more accesses are done.
Advance = Callable[[int], object]


class MemoryModel(Protocol[R]):
    """A memory model: anything with these two methods.

    `feed` gets the accesses of the chosen components in order of (cycle, component, op), cut
    anywhere; `result` is called once, behind the last chunk.
    """

    def feed(self, chunk: Accesses) -> None:
        """Take the next accesses; ``chunk.component`` counts within all components of the trace."""

    def result(self) -> R:
        """What the accesses so far amount to."""


@runtime_checkable
class ClosedForm(Protocol):
    """A model that may take a trace without its expansion."""

    def take(self, trace: Trace, advance: Advance) -> bool:
        """Take all of the trace, as if fed; False, with nothing taken, if it must be fed."""


@dataclass(frozen=True)
class Source:
    """What a model may know of a trace before its first access.

    Parameters
    ----------
    components : tuple of Component
        All of the trace.
    chosen : tuple of int
        Those whose accesses come, as places in `components`, rising.
    cycles : int
        Of the whole run.
    meta : dict
        What made the trace; see `Trace.meta`.
    """

    components: tuple[Component, ...]
    chosen: tuple[int, ...]
    cycles: int
    meta: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the chosen components."""
        return tuple(self.components[place].name for place in self.chosen)

    @property
    def accelerator(self) -> Accelerator | None:
        """What made the trace, told in full or by a preset's name; None if it does not say."""
        told = self.meta.get("accelerator")
        try:
            if isinstance(told, dict):
                return Accelerator.from_dict(told)
            return Accelerator.load(told) if isinstance(told, str) and told in presets() else None
        except AcceleratorError:
            return None


@dataclass(frozen=True)
class Result:
    """What a replay gives.

    Parameters
    ----------
    memory : str
        Name of the model.
    component : str
        Names of the components replayed, joined by commas.
    requests : int
        Requests that the model counted.
    curve : tuple of (bytes, miss ratio), or None
        Rising sizes; None if the model has no such curve.
    details : dict of str to plain values
        What ``--json`` prints besides.
    arrays : dict of str to arrays
        What only the HDF5 file holds besides.
    """

    memory: str
    component: str
    requests: int
    curve: tuple[tuple[int, float], ...] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``epur replay --json`` prints them."""
        curve = {} if self.curve is None else {"curve": [list(point) for point in self.curve]}
        head = {"memory": self.memory, "component": self.component, "requests": self.requests}
        return head | curve | self.details

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to HDF5: scalars as attributes, the curve, tables and arrays as datasets.

        A detail that is a dict becomes a group; a list of dicts one of groups, by component or
        number. What is null is NaN.

        Raises
        ------
        TraceError
            The file can't be written; what stood at `path` is untouched.
        """
        # HDF5 meets a full disk in ways of its own: it writes to memory, and a plain file follows.
        memory = io.BytesIO()
        with h5py.File(memory, "w") as file:
            for name, value in self.to_dict().items():
                _put(file, name, value)
            for name, array in self.arrays.items():
                _put(file, name, array)
        with written(path) as out:
            out.write(memory.getbuffer())


def _put(group: h5py.Group, name: str, value: Any) -> None:
    if isinstance(value, dict):
        inner = group.create_group(name)
        for key, one in value.items():
            _put(inner, str(key), one)
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        _put(group, name, {row.get("component", n): row for n, row in enumerate(value)})
    elif isinstance(value, list | tuple) and any(isinstance(one, str) for one in value):
        group.create_dataset(name, data=np.array([str(one).encode() for one in value]))
    elif isinstance(value, np.ndarray | list | tuple):
        if not isinstance(value, np.ndarray):
            value = [np.nan if one is None else one for one in value]
        array = np.asarray(value)
        small = array.size < 1024
        group.create_dataset(
            name, data=array, compression=None if small else "gzip", shuffle=not small
        )
    else:
        group.attrs[name] = np.nan if value is None else value
