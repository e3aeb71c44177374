"""Units of a study's work: each is computed by itself, in any process, and known by its content.

A unit's key is a hash of all that its result depends on, so that equal work is done once, and a result
found again after an interruption is the same.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.energy import EnergyTable, Report, energy
from epur_emu.errors import (
    AcceleratorError,
    FormatError,
    NetworkError,
    StudyError,
    TableError,
)
from epur_emu.study.results import energy_of, finite, trace_of
from epur_emu.study.workloads import Choice, Plain, Workload, digest, open_workload
from epur_emu.trace import Trace
from epur_emu.version import __version__

#: What a point may fail by, and the study goes on: it does not fit, or leaves a format's range.
OWN = (AcceleratorError, FormatError, NetworkError, TableError)

#: Workloads and accelerators whose traces a process keeps.
KEPT = 4


@dataclass(frozen=True)
class Unit:
    """Something to compute.

    Parameters
    ----------
    kind : {"reference", "evaluation", "pricing"}
    choice : Choice
    source : str
        The workload's digest.
    arithmetic, accelerator : Arithmetic, Accelerator, optional
    table : str
        Of a pricing: the name by which it is loaded.
    prices : str
        The table's digest.
    count : int
        Of an evaluation: items on which errors by layer are measured; of a pricing: items traced.
    """

    kind: str
    choice: Choice
    source: str
    arithmetic: Arithmetic | None = None
    accelerator: Accelerator | None = None
    table: str = ""
    prices: str = ""
    count: int = 0

    @property
    def key(self) -> str:
        """Hash of all that the result depends on; names of arithmetics and accelerators are not."""
        return _key(self)

    @property
    def needs(self) -> str | None:
        """Key of the unit whose result this one is given."""
        if self.kind == "reference":
            return None
        return Unit("reference", self.choice, self.source).key


@lru_cache(maxsize=1 << 16)
def _key(unit: Unit) -> str:
    parts: list[Any] = [unit.kind, __version__, unit.source]
    if unit.arithmetic is not None:
        parts += [{**unit.arithmetic.to_dict(), "name": ""}]
    if unit.accelerator is not None and unit.kind == "evaluation":
        # All of an accelerator that the values depend on.
        parts += [unit.accelerator.dataflow, unit.accelerator.width]
    elif unit.accelerator is not None:
        parts += [{**unit.accelerator.to_dict(), "name": ""}]
    return digest([*parts, unit.prices, unit.count])


def table_digest(table: EnergyTable) -> str:
    """Hash of an energy table."""
    return digest(table.to_dict())


def compute(unit: Unit, given: Plain | None, version: str) -> Plain:
    """The result of a unit: plain values that JSON holds.

    Parameters
    ----------
    unit : Unit
    given : dict, optional
        The result of the unit that it needs.
    version : str
        Of the package that asks; another one's results would differ.

    Raises
    ------
    StudyError
        This process has another version, or another model or other data under the same name.
    EpurError
        What is needed is missing; what concerns this unit alone is in its result, ``problem``.
    """
    if version != __version__:
        raise StudyError(
            "worker", "epur_emu", f"has version {__version__}, not {version}", "install the same"
        )
    work = open_workload(unit.choice)
    if work.digest != unit.source:
        raise StudyError(
            unit.choice.model, "model or data", "are not those of the process that asks",
            "give each worker the same files (EPUR_MODELS, EPUR_DATA)",
        )  # fmt: skip
    if given is None:
        return work.reference()
    assert unit.arithmetic is not None
    assert unit.accelerator is not None
    if unit.kind == "pricing":
        return _priced(work, unit, given)
    try:
        found = work.evaluate(unit.arithmetic, unit.accelerator, given, unit.count)
    except OWN as error:
        return {"problem": str(error)}
    result: Plain = finite({**found, "problem": None})
    return result


def _priced(work: Workload, unit: Unit, given: Plain) -> Plain:
    assert unit.arithmetic is not None
    assert unit.accelerator is not None
    try:
        traces = _traces(work, unit.arithmetic, unit.accelerator, given, unit.count)
    except OWN as error:
        return {"problem": str(error)}
    machine, items = unit.accelerator, len(traces)
    seconds = machine.seconds(sum(trace.cycles for trace in traces)) / items
    duration = work.duration(unit.count)
    out: Plain = {
        "items": items, "cycles": sum(trace.cycles for trace in traces) / items, "seconds": seconds,
        "real_time_factor": duration / items / seconds if duration and seconds else None,
        "trace": _accesses(traces), "problem": None,
    }  # fmt: skip
    try:
        prices, known = _prices(unit.table)
        if known != unit.prices:
            raise StudyError(
                unit.table, "energy table", "is not that of the process that asks",
                "give each worker the same file",
            )  # fmt: skip
        reports = [energy(trace, prices) for trace in traces]
    except OWN as error:
        return {**out, "problem": str(error)}
    result: Plain = finite(out | _energy(reports))
    return result


@lru_cache(maxsize=16)
def _prices(name: str) -> tuple[EnergyTable, str]:
    table = EnergyTable.load(name)
    return table, table_digest(table)


def _energy(reports: list[Report]) -> Plain:
    """Means of items."""
    groups = [report.groups() for report in reports]
    costs = {
        name: {
            "dynamic": math.fsum(g[name].dynamic_pj for g in groups) / len(groups),
            "static": math.fsum(g[name].static_pj for g in groups) / len(groups),
            "accesses": sum(g[name].accesses for g in groups) / len(groups),
        }
        for name in groups[0]
    }
    found = energy_of(costs)
    seconds = math.fsum(report.seconds for report in reports) / len(reports)
    return {
        "energy_pj": found,
        "average_mw": found["total"] / seconds * 1e-9 if seconds else None,
        "peak_mw": max(report.peak_mw for report in reports), "area_mm2": reports[0].area_mm2,
        "wider": {k: v for report in reports for k, v in report.wider.items()},
    }  # fmt: skip


def _accesses(traces: list[Trace]) -> Plain:
    """Means of items; buffers of the four computation units together."""
    sums: dict[str, dict[str, float]] = {}
    for trace in traces:
        for (_, component, op), (accesses, size) in trace.totals().items():
            name = component.rpartition(".")[2]
            row = sums.setdefault(name, {"reads": 0, "writes": 0, "bytes": 0})
            row[f"{op}s"] += accesses
            row["bytes"] += size
    return trace_of(
        {name: {k: v / len(traces) for k, v in row.items()} for name, row in sums.items()}
    )


_known: OrderedDict[Any, list[Trace]] = OrderedDict()


def _traces(
    work: Workload, arithmetic: Arithmetic, accelerator: Accelerator, given: Plain, count: int
) -> list[Trace]:
    """Traces of a workload in an arithmetic, made once for all arithmetics of equal widths."""
    key = (work.digest, accelerator, count, work.alike(arithmetic, accelerator))
    if key not in _known:
        _known[key] = work.schedule(arithmetic, accelerator, given, count)
        while len(_known) > KEPT:
            _known.popitem(last=False)
    _known.move_to_end(key)
    out = []
    for trace in _known[key]:
        meta = {**trace.meta, "arithmetic": arithmetic.to_dict()}
        out.append(Trace(trace.phases, trace.components, trace.cycles, meta, trace.events))
    return out
