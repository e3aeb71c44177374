"""Memory models over a trace: ``replay(trace, memory, ...)``; ``docs/replay.md`` has one's own.

A new model is a file here with a class ``Model(source, **options)`` of `feed` and `result`, and one
entry of `MEMORIES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from tqdm import tqdm

from epur_emu.errors import TraceError
from epur_emu.replay.base import ClosedForm, MemoryModel, Result, Source
from epur_emu.replay.dram import Dram
from epur_emu.replay.lru import Lru
from epur_emu.replay.reuse import Reuse
from epur_emu.replay.scratchpad import Scratchpad
from epur_emu.trace import Trace

__all__ = ["MEMORIES", "MemoryModel", "Result", "Source", "replay"]

R = TypeVar("R")

#: By name, what makes a model of (source, options), and the components that it takes by default.
MEMORIES: dict[str, tuple[Callable[..., MemoryModel[Result]], str]] = {
    "scratchpad": (Scratchpad, "*"),
    "lru": (Lru, "dram"),
    "reuse": (Reuse, "*"),
    "dram": (Dram, "dram"),
}

#: Most accesses of a chunk; 30 MB.
CHUNK = 1 << 20


@overload
def replay(
    trace: Trace, memory: str, component: str | None = None, *, progress: bool = False,
    **options: Any,
) -> Result: ...  # fmt: skip
@overload
def replay(
    trace: Trace, memory: MemoryModel[R], component: str | None = None, *, progress: bool = False
) -> R: ...
def replay(
    trace: Trace, memory: Any, component: str | None = None, *, progress: bool = False,
    **options: Any,
) -> Any:  # fmt: skip
    """Replay a trace through a memory model.

    Parameters
    ----------
    trace : Trace
    memory : str or MemoryModel
        A name of `MEMORIES`, or a model of one's own: an object with ``feed(chunk)`` and
        ``result()``.
    component : str, optional
        Only the accesses of these components: names or patterns such as ``cu.*.weights``, joined by
        commas. By default those that the named model is made for, or all for one's own.
    progress : bool
        Show a bar on stderr.
    **options
        Of a named model; see its class.

    Returns
    -------
    Result, or whatever one's own model gives

    Raises
    ------
    TraceError
        The model, a component or an option is unknown, or an option's value is not valid.
    """
    if isinstance(memory, str):
        if memory not in MEMORIES:
            raise TraceError(
                "replay", "memory", f"is {memory!r}", f"use one of {', '.join(MEMORIES)}"
            )
        make, default = MEMORIES[memory]
        source = _source(trace, component or default)
        known = list(inspect.signature(make).parameters)[1:]
        if unknown := [name for name in options if name not in known]:
            raise TraceError(
                f"memory {memory}", ", ".join(unknown), "is no option of it",
                f"use {', '.join(known) or 'none'}",
            )  # fmt: skip
        model = make(source, **options)
    else:
        model, source = memory, _source(trace, component or "*")
    names = source.names
    total = sum(n for (_, name, _), (n, _) in trace.totals().items() if name in names)
    with tqdm(total=total, unit="access", unit_scale=True, disable=not progress) as bar:
        if not (isinstance(model, ClosedForm) and model.take(trace, bar.update)):
            for chunk in trace.expand(CHUNK, names):
                model.feed(chunk)
                bar.update(len(chunk))
    return model.result()


def _source(trace: Trace, component: str) -> Source:
    names = [c.name for c in trace.components]
    chosen = trace.fitting(component)
    for name in chosen:
        if name not in names:
            raise TraceError("replay", "component", f"is {name!r}", f"use one of {', '.join(names)}")
    places = sorted(map(names.index, chosen))
    return Source(trace.components, tuple(places), trace.cycles, trace.meta)
