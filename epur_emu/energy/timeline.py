"""Power over time: the same energy as the report's, laid out over the run's cycles."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epur_emu.energy.model import PJ_PER_MW_SECOND, Priced
from epur_emu.energy.report import group
from epur_emu.energy.table import EnergyTable
from epur_emu.errors import TraceError
from epur_emu.streams import AccessStream, Phase
from epur_emu.trace import Trace

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Timeline:
    """Power of each group of components in equal parts of a run.

    Parameters
    ----------
    cycles : float64 array of shape (parts + 1,)
        Bounds of the parts.
    seconds : float
        Of the whole run.
    power_mw : dict of str to float64 array of shape (parts,)
        By group of components, dynamic; and ``static``: leakage and the DRAM's background, constant.
    """

    cycles: Doubles
    seconds: float
    power_mw: dict[str, Doubles]


def timeline(trace: Trace, table: EnergyTable, parts: int = 400) -> Timeline:
    """Power of a run over its cycles; nothing is expanded.

    Accesses count in their own cycles. A phase's operations follow, in time, the accesses of the
    memory that feeds them: the DPUs' that of its weight buffers, the MUs' and links' all of it. The
    part's power is its energy over its time, so that all parts together hold the report's energy.

    Parameters
    ----------
    trace : Trace
    table : EnergyTable
    parts : int
        At most the trace's cycles are made.

    Raises
    ------
    TraceError
        The trace has no cycle.
    """
    if not trace.cycles:
        raise TraceError("trace", "cycles", "are 0", "give a trace of a run with time steps")
    priced = Priced(trace, table)
    report = priced.report()
    edges = np.ceil(np.linspace(0, trace.cycles, min(parts, trace.cycles) + 1))
    bounds, widths = [int(edge) for edge in edges], np.diff(edges) / trace.cycles
    energy: dict[str, Doubles] = {
        name: np.zeros(widths.size) for name in (*report.groups(), "static")
    }
    for phase, costs, units in zip(trace.phases, priced.streams, priced.operations, strict=True):
        spread = [_shares(stream, bounds) for stream in phase.streams]
        for stream, share, pj in zip(phase.streams, spread, costs, strict=True):
            energy[group(stream.component)] += share * pj
        for unit, pj in units.items():
            energy[unit] += _feeding(phase, spread, unit, widths) * pj
    counts = np.zeros((len(priced.places), widths.size), np.int64)
    for events in trace.single():
        # Cycles rise; those beyond the run count in the last part.
        behind = np.searchsorted(events.cycle, bounds[1:-1])
        part = np.repeat(np.arange(widths.size), np.diff(behind, prepend=0, append=len(events)))
        cell = events.component * np.int64(widths.size) + part
        counts += np.bincount(cell, minlength=counts.size).reshape(counts.shape)
    for place, count in zip(priced.places, counts, strict=True):
        if count.any():
            energy[group(place.name)] += count / count.sum() * priced.events[place.name]
    energy["static"] += report.static_pj * widths
    scale = 1 / (PJ_PER_MW_SECOND * report.seconds * widths)
    return Timeline(edges, report.seconds, {name: pj * scale for name, pj in energy.items()})


def _shares(stream: AccessStream, bounds: list[int]) -> Doubles:
    """The share of a stream's accesses in each part; what is beyond the run counts in the last."""
    if stream.last_cycle < bounds[0] or stream.cycle >= bounds[-1]:
        out = np.zeros(len(bounds) - 1)
        out[-1] = 1.0
        return out
    first = bisect_right(bounds, stream.cycle) - 1
    last = bisect_right(bounds, stream.last_cycle)
    done = np.zeros(len(bounds))
    done[last:] = stream.accesses
    for part in range(first + 1, min(last, len(bounds) - 1)):
        done[part] = stream.before(bounds[part])
    done[-1] = stream.accesses
    return np.diff(done) / stream.accesses


def _feeding(phase: Phase, spread: list[Doubles], unit: str, widths: Doubles) -> Doubles:
    """The share of a unit's operations in each part; even if the phase has no access."""
    total, accesses = np.zeros(widths.size), 0
    for only_weights in (unit == "dpu", False):
        for stream, share in zip(phase.streams, spread, strict=True):
            if not only_weights or group(stream.component) in ("weights", "row"):
                total += share * stream.accesses
                accesses += stream.accesses
        if accesses:
            return total / accesses
    return widths
