"""The report of one trace: what a run accessed, when, and what it cost."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from epur_emu.accelerator import Accelerator
from epur_emu.comparison import load_model
from epur_emu.energy import EnergyTable, Report, energy
from epur_emu.errors import EpurError, TraceError
from epur_emu.plots import report as figures
from epur_emu.replay import Result, replay
from epur_emu.report.page import Column, Page, words
from epur_emu.trace import Trace
from epur_emu.units import si
from epur_emu.zoo import list_models

#: Accesses of a component from which on its miss ratios are estimated on a sample of its lines.
MANY = 200_000_000
SAMPLED_LINES = 8192

#: A cache beside one computation unit is asked what this unit's buffers are asked.
CACHED = ("cu.i.weights", "cu.i.row", "cu.i.inputs", "intermediate", "dram")


def page(path: str | os.PathLike[str], table: str = "epur-28nm", progress: bool = False) -> Page:
    """The report of the trace in a file.

    Parameters
    ----------
    path : path
    table : str
        Energy table, a preset or a file.
    progress : bool
        Show bars on stderr.

    Raises
    ------
    TraceError
        The file is no trace, or a damaged one.
    TableError
        The energy table is damaged or lacks what the trace has.
    EpurError
        matplotlib is missing.
    """
    trace = Trace.open(path)
    trace.validate()
    info = trace.info()
    prices = EnergyTable.load(table)
    # A trace from elsewhere need not say what made it; accesses alone can be shown still.
    made_by = ("accelerator", "arithmetic")
    missing = [name for name in made_by if not isinstance(trace.meta.get(name), dict)]
    report = None if missing else energy(trace, prices)
    accelerator = None if missing else Accelerator.from_dict(trace.meta["accelerator"])
    caches = _caches(trace, progress)
    buffers = _buffers(trace, table)
    made = Page(
        f"Trace {Path(path).name}",
        _lead(trace, accelerator),
        {
            "trace": os.fspath(path), "info": info,
            "energy": report and report.to_dict(),
            "lru": {name: result.to_dict() for name, result in caches.items()},
            "scratchpad": buffers and buffers.to_dict(),
        },
    )  # fmt: skip
    if not trace.complete:
        made.text(
            "The run was interrupted: the trace holds what was written until then.", "warning"
        )
    made.key(_key(info, report))
    if report:
        _energy(made, trace, prices, report)
    else:
        made.section("Energy")
        made.text(f"No energy: the trace does not say its {' and '.join(missing)}.")
    _time(made, trace, report, accelerator)
    _memories(made, caches, buffers)
    _reproduce(made, path, trace, table)
    return made


def _lead(trace: Trace, accelerator: Accelerator | None) -> str:
    networks = ", ".join(f"{n['name']} ({n['steps']} steps)" for n in _networks(trace))
    if accelerator is None or not networks:
        return "Every access of a run, in closed form."
    return f"{networks} on {accelerator.name} in {trace.meta['arithmetic'].get('name')}."


def _networks(trace: Trace) -> list[dict[str, Any]]:
    found = trace.meta.get("networks")
    wanted = {"name", "steps", "weights"}
    if not isinstance(found, list):
        return []
    return [n for n in found if isinstance(n, dict) and wanted <= n.keys()]


def _key(info: dict[str, Any], report: Report | None) -> list[tuple[str, str, str]]:
    values = [
        ("cycles", f"{info['cycles']:,}", f"{si(report.seconds, 's')}" if report else ""),
        ("accesses", f"{info['accesses']:,}", f"{si(info['bytes'], 'B')} moved"),
    ]
    if report is None:
        return values
    chip = f"{report.average_chip_mw:.0f} mW without DRAM"
    return [
        ("energy", si(report.total_pj * 1e-12, "J"), f"static {si(report.static_pj * 1e-12, 'J')}"),
        ("average power", f"{report.average_mw:.0f} mW", chip),
        ("peak power", f"{report.peak_mw:.0f} mW", "of the chip, a bound"),
        ("area", f"{report.area_mm2:.1f} mm2", f"table {report.table}"),
        *values,
    ]  # fmt: skip


def _energy(made: Page, trace: Trace, prices: EnergyTable, report: Report) -> None:
    made.section("Energy")
    for warning in report.warnings:
        made.text(warning, "warning")
    made.figure(
        "energy", f"Energy by component, dynamic and static (table {report.table})",
        partial(figures.energy_bars, report),
    )  # fmt: skip
    made.figure(
        "energy by phase", "Dynamic energy by layer and kind of phase",
        partial(figures.phase_bars, report.by_phase),
    )  # fmt: skip
    if trace.cycles:
        made.figure(
            "power", "Power over the run, by component",
            partial(figures.power, trace, prices, report), wide=True,
        )  # fmt: skip
    by_component = trace.info()["by_component"]
    total = report.total_pj or 1.0
    made.table(
        [
            words("component"), Column("reads"), Column("writes"), Column("bytes"),
            Column("operations"), *_costs(), Column("share (%)", text="{:.2f}".format),
        ],
        [
            (
                name, *_moved(by_component.get(name)),
                None if name in by_component else cost.accesses,
                cost.dynamic_pj * 1e-6, cost.static_pj * 1e-6, cost.total_pj * 1e-6,
                100 * cost.total_pj / total,
            )
            for name, cost in report.by_component.items()
        ],
    )  # fmt: skip
    if report.wider:
        priced = ", ".join(f"{name} as {unit}" for name, unit in sorted(report.wider.items()))
        made.text(f"Priced as the next wider format that the table has: {priced}.", "note")


def _costs() -> list[Column]:
    return [
        Column(f"{kind} (uJ)", text="{:,.3f}".format) for kind in ("dynamic", "static", "total")
    ]


def _moved(row: dict[str, int] | None) -> tuple[int | None, ...]:
    return (row["reads"], row["writes"], row["bytes"]) if row else (None, None, None)


def _time(made: Page, trace: Trace, report: Report | None, accelerator: Accelerator | None) -> None:
    made.section("Phases")
    if any(phase.cycles for phase in trace.phases):
        made.figure(
            "timeline", "When each layer's phases run",
            partial(figures.timeline, trace.phases, accelerator.clock_hz if accelerator else None),
            wide=True,
        )  # fmt: skip
    rows: dict[tuple[str, str], list[float]] = {}
    totals = trace.totals()
    moved = [0] * len(trace.phases)
    for (index, _, _), (_, size) in totals.items():
        if index >= 0:
            moved[index] += size
    costs = report.by_phase if report else (None,) * len(trace.phases)
    for phase, size, cost in zip(trace.phases, moved, costs, strict=False):
        row = rows.setdefault((phase.layer, phase.kind), [phase.first_cycle, 0, 0, 0, 0.0])
        row[0] = min(row[0], phase.first_cycle)
        row[1] = max(row[1], phase.first_cycle + phase.cycles)
        row[2] += 1
        row[3] += size
        row[4] += cost.dynamic_pj * 1e-6 if cost else 0.0
    made.table(
        [
            words("layer"), words("kind"), Column("phases"), Column("first cycle"),
            Column("last cycle"), Column("bytes"), Column("dynamic (uJ)", text="{:,.3f}".format),
        ],
        [
            (layer, kind, n, first, end - 1 if end else 0, size, pj if report else None)
            for (layer, kind), (first, end, n, size, pj) in rows.items()
        ],
    )  # fmt: skip
    operations = trace.operations()
    if operations:
        made.text("Operations, by unit:", "note")
        made.table(
            [words("operation"), words("unit"), Column("count")],
            [(name, unit, count) for (name, unit), count in sorted(operations.items())],
        )


def _memories(made: Page, caches: dict[str, Result], buffers: Result | None) -> None:
    if not caches and buffers is None:
        return
    made.section("Memory sizes")
    if caches:
        sampled = [name for name, result in caches.items() if result.details["sampled"]]
        made.figure(
            "miss ratios",
            "Miss ratio of an LRU cache (lines of 64 bytes) in the place of each memory"
            + (f"; estimated on a sample of lines: {', '.join(sampled)}" if sampled else ""),
            partial(figures.miss_ratios, caches),
        )
    if buffers is not None:
        if any(any(row["refetch_bytes"]) for row in buffers.details["components"]):
            made.figure(
                "refetches", "Bytes that buffers of another size would have to fetch again",
                partial(figures.refetches, buffers),
            )  # fmt: skip
        made.table(
            [
                words("buffer"), Column("capacity (bytes)"),
                Column("smallest without re-fetch (bytes)"),
            ],
            [
                (row["component"], row["capacity_bytes"], row["smallest_bytes"])
                for row in buffers.details["components"]
            ],
        )  # fmt: skip


def _caches(trace: Trace, progress: bool) -> dict[str, Result]:
    counts: dict[str, int] = {}
    for (_, component, _), (accesses, _) in trace.totals().items():
        counts[component] = counts.get(component, 0) + accesses
    names = [name for name in CACHED if counts.get(name)] or list(counts)[: len(CACHED)]
    found = {}
    for name in names:
        sampling = {"sampling": SAMPLED_LINES} if counts[name] > MANY else {}
        try:
            found[name] = replay(trace, "lru", name, progress=progress, **sampling)
        except TraceError:  # a footprint that exact distances can't hold
            found[name] = replay(trace, "lru", name, progress=progress, sampling=SAMPLED_LINES)
    return found


def _buffers(trace: Trace, table: str) -> Result | None:
    if all(c.capacity is None or c.name == "dram" for c in trace.components):
        return None
    return replay(trace, "scratchpad", table=table)


def _reproduce(made: Page, path: str | os.PathLike[str], trace: Trace, table: str) -> None:
    made.section("How to reproduce")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    version = trace.meta.get("version")
    made.text(
        f"The trace was written by epur_emu {version or '(version unknown)'}; its SHA-256 is {digest}."
    )
    lines = [f"epur trace info {shlex.quote(os.fspath(path))}"]
    quoted = shlex.quote(os.fspath(path))
    lines += [f"epur energy {quoted} --table {shlex.quote(table)}"]
    lines += [f"epur replay {quoted} --memory lru --component 'cu.i.weights'"]
    if model := _model(trace):
        lines.insert(
            0,
            f"epur run {model} INPUT --arithmetic {trace.meta['arithmetic'].get('name')} "
            f"--accelerator {trace.meta['accelerator'].get('name')} --trace {quoted}",
        )
    lines.append(f"epur report {quoted} --table {shlex.quote(table)} -o report.html")
    made.code("\n".join(lines))
    made.code(json.dumps(trace.meta, indent=1, ensure_ascii=False), "What made the trace, whole")


def _model(trace: Trace) -> str | None:
    """The known model whose weights the trace names."""
    wanted = [network["weights"] for network in _networks(trace)]
    for name, folder in list_models().items() if wanted else ():
        try:
            networks = load_model(folder).networks.values()
        except EpurError:
            continue
        if set(wanted) <= {network.weight_hash for network in networks}:
            return name
    return None
