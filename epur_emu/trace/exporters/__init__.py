"""Traces to and from other tools' formats.

A new format is one module and one line in `EXPORTERS` or `IMPORTERS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import numpy as np
from tqdm import tqdm

from epur_emu._kernels.expand import encode
from epur_emu.errors import TraceError
from epur_emu.streams import OPS, Component
from epur_emu.trace.accesses import Accesses, Runs
from epur_emu.trace.exporters import parquet
from epur_emu.trace.exporters.base import Exporter, Part
from epur_emu.trace.exporters.csv import Csv
from epur_emu.trace.exporters.csv import read as read_csv
from epur_emu.trace.exporters.dramsim3 import DramSim3
from epur_emu.trace.exporters.libcachesim import LibCacheSim
from epur_emu.trace.exporters.ramulator import Ramulator1, Ramulator2
from epur_emu.trace.exporters.scalesim import ScaleSim
from epur_emu.trace.files import written
from epur_emu.trace.trace import EventWriter, Trace

__all__ = ["EXPORTERS", "IMPORTERS", "export", "import_accesses", "window"]

EXPORTERS: dict[str, type[Exporter]] = {
    "csv": Csv,
    "parquet": parquet.Parquet,
    "scale-sim": ScaleSim,
    "ramulator1": Ramulator1,
    "ramulator2": Ramulator2,
    "dramsim3": DramSim3,
    "libcachesim": LibCacheSim,
}

IMPORTERS: dict[str, Callable[[str | os.PathLike[str]], Iterator[Part]]] = {
    "csv": read_csv,
    "parquet": parquet.read,
}

#: Most accesses in one cycle of an imported file.
MOST_AT_ONCE = 1 << 21

#: Accesses that are exported at once.
CHUNK = 1 << 16


def window(
    trace: Trace, components: Sequence[str] | None, op: str | None, start: int, stop: int | None,
    chunk: int = CHUNK,
) -> Iterator[Accesses]:  # fmt: skip
    """Single accesses of some components in some cycles, reads or writes alone if wanted."""
    for part in trace.expand(chunk, components, start, stop):
        found = part if op is None else part[part.op == OPS.index(op)]
        if len(found):
            yield found


def export(
    trace: Trace,
    path: str | os.PathLike[str],
    form: str,
    components: Sequence[str] | None = None,
    op: str | None = None,
    start: int = 0,
    stop: int | None = None,
    progress: bool = False,
) -> int:
    """Write a trace's single accesses in another tool's format; returns how many.

    Parameters
    ----------
    trace : Trace
    path : path-like
        Appears when it is whole.
    form : str
        One of `EXPORTERS`.
    components : sequence of str, optional
        Only these; by default all, or ``dram`` where the format knows no components.
    op : {'read', 'write'}, optional
        Only these.
    start, stop : int
        Only accesses in cycles ``start <= cycle < stop``.
    progress : bool
        Whether to show a bar on the standard error stream.

    Raises
    ------
    TraceError
        The format or a component is unknown, the format can't hold the accesses, or the file can't be
        written.
    """
    if form not in EXPORTERS:
        raise TraceError("export", "format", f"is {form!r}", f"use one of {', '.join(EXPORTERS)}")
    make = EXPORTERS[form]
    if make.single:
        components = ["dram"] if components is None else components
        if len(set(components)) != 1:
            raise TraceError(
                "export", "components", f"are {len(set(components))}, {form} has addresses alone", "name one"
            )
    about = {"cycles": trace.cycles, "meta": trace.meta}
    whole = components is None and op is None and not start and stop is None
    done = 0
    with (
        written(path) as file,
        tqdm(
            total=trace.count() if whole else None, unit="access", unit_scale=True,
            disable=not progress,
        ) as bar,
    ):  # fmt: skip
        writer = make(file, trace.components, about)
        for part in window(trace, components, op, start, stop):
            writer.feed(part)
            done += len(part)
            bar.update(len(part))
        writer.close()
    return done


def import_accesses(
    source: str | os.PathLike[str], path: str | os.PathLike[str], form: str, progress: bool = False
) -> Trace:
    """Make a trace of another tool's accesses, in order of their cycles.

    Parameters
    ----------
    source : path-like
    path : path-like
        The trace.
    form : str
        One of `IMPORTERS`.
    progress : bool
        Whether to show a bar on the standard error stream.

    Raises
    ------
    TraceError
        The format is unknown, a value is wrong or out of order, or a file can't be read or written.
    """
    if form not in IMPORTERS:
        raise TraceError(source, "format", f"is {form!r}", f"use one of {', '.join(IMPORTERS)}")
    late, reached, done = Accesses.none(), 0, 0
    widths: dict[str, int] = {}
    names: Sequence[str] = ()
    try:
        with (
            closing(EventWriter(path, ())) as writer,
            tqdm(unit="access", unit_scale=True, disable=not progress) as bar,
        ):

            def put(part: Accesses) -> None:
                for component in np.unique(part.component).tolist():
                    own = part[part.component == component]
                    widths[names[component]] = max(
                        widths.get(names[component], 1), min(8 * int(own.bytes.max()), 1 << 20)
                    )
                    columns = (own.cycle, own.address, own.bytes, own.op)
                    runs = Runs(*encode(*map(np.ascontiguousarray, columns)))
                    writer.runs(component, runs)

            for names, chunk in IMPORTERS[form](source):
                if not len(chunk):
                    continue
                chunk.check(str(source), len(names))
                if int(chunk.cycle[0]) < reached or (np.diff(chunk.cycle) < 0).any():
                    raise TraceError(
                        source, f"accesses {done} to {done + len(chunk)}", "are not in order of cycles",
                        "sort them",
                    )  # fmt: skip
                done, reached = done + len(chunk), int(chunk.cycle[-1])
                writer.components = _components(names, widths)
                joined = Accesses.join([late, chunk]).ordered()
                due = int(np.searchsorted(joined.cycle, reached))
                late = joined[due:]
                if len(late) > MOST_AT_ONCE:
                    raise TraceError(source, f"cycle {reached}", "has over 2 million accesses", "split it")
                put(joined[:due])
                bar.update(len(chunk))
            put(late)
            about = parquet.about(source) if form == "parquet" else {}
            if made := about.get("components"):
                writer.components = tuple(Component(**row) for row in made) + _components(
                    names[len(made) :], widths
                )
            else:
                writer.components = _components(names, widths)
            cycles = max(int(about.get("cycles", 0)), reached + 1 if done else 0)
            return writer.finish_events((), cycles, about.get("meta", {"imported": form}))
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, TraceError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise TraceError(source, "", f"cannot be read ({reason:.200})", f"give a {form} file") from error


def _components(names: Sequence[str], widths: dict[str, int]) -> tuple[Component, ...]:
    """Unbounded memories of these names."""
    return tuple(Component(name, None, widths.get(name, 1), 1) for name in names)
