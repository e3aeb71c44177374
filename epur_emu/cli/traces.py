"""Commands on traces: ``epur trace``, ``epur energy``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from epur_emu.cli.shared import as_json, show, si, table_option
from epur_emu.energy import EnergyTable, Report, energy
from epur_emu.streams import OPS
from epur_emu.trace import Trace
from epur_emu.trace.exporters import EXPORTERS, IMPORTERS, export, import_accesses, window
from epur_emu.trace.exporters.csv import Csv

BAR = 24


@click.group(epilog="Example: epur trace info run.h5")
def trace() -> None:
    """Look at a trace, check it, or exchange it with other tools."""


@trace.command(epilog="Example: epur trace info run.h5 --json")
@click.argument("path")
@as_json
def info(path: str, json_: bool) -> None:
    """Count a trace's accesses, in closed form."""
    found = Trace.open(path).info()
    if json_:
        show(found)
        return
    state = "complete" if found["complete"] else "INTERRUPTED: holds what was written until then"
    click.echo(
        f"{path}: {found['accesses']:,} accesses, {si(found['bytes'], 'B')}, "
        f"{found['cycles']:,} cycles, {state}"
    )
    click.echo(
        f"{found['streams']} streams and {found['events']} single events in {found['phases']} phases\n"
    )
    click.echo(f"  {'component':<16}{'reads':>16}{'writes':>16}{'bytes':>18}")
    for name, row in found["by_component"].items():
        click.echo(f"  {name:<16}{row['reads']:>16,}{row['writes']:>16,}{row['bytes']:>18,}")


@trace.command(epilog="Example: epur trace validate run.h5")
@click.argument("path")
@as_json
def validate(path: str, json_: bool) -> None:
    """Check a trace against its own totals and its components' capacities."""
    opened = Trace.open(path)
    opened.validate()
    accesses = opened.count()
    if json_:
        show({"valid": True, "complete": opened.complete, "accesses": accesses})
        return
    click.echo(
        f"{path}: valid, {accesses:,} accesses{'' if opened.complete else ', but interrupted'}"
    )


component_option = click.option(
    "--component", "components", multiple=True, metavar="NAME",
    help="Only accesses of this memory; may be given several times.",
)  # fmt: skip
op_option = click.option("--op", type=click.Choice(OPS), help="Only reads, or only writes.")
start_option = click.option(
    "--start", default=0, type=click.IntRange(0), help="Only from this cycle on."
)
stop_option = click.option("--stop", type=click.IntRange(0), help="Only before this cycle.")
output_option = click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False), help="The file to write."
)


@trace.command(epilog="Example: epur trace expand run.h5 --component dram --start 1000 --stop 2000")
@click.argument("path")
@component_option
@op_option
@start_option
@stop_option
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write to this file.")
def expand(
    path: str, components: tuple[str, ...], op: str | None, start: int, stop: int | None,
    output: str | None,
) -> None:  # fmt: skip
    """Print single accesses in order of time, as CSV."""
    opened = Trace.open(path)
    if output:
        export(opened, output, "csv", components or None, op, start, stop, progress=True)
        return
    out = sys.stdout.buffer
    parts = window(opened, components or None, op, start, stop)
    try:
        writer = Csv(out, opened.components, {})
        for part in parts:
            writer.feed(part)
        out.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@trace.command("export", epilog="Example: epur trace export run.h5 -o run.csv --format csv")
@click.argument("path")
@output_option
@click.option(
    "--format", "form", required=True, type=click.Choice(list(EXPORTERS)), help="What to write."
)
@component_option
@op_option
@start_option
@stop_option
@as_json
def export_(
    path: str, output: str, form: str, components: tuple[str, ...], op: str | None, start: int,
    stop: int | None, json_: bool,
) -> None:  # fmt: skip
    """Write a trace's single accesses for another tool."""
    opened = Trace.open(path)
    done = export(opened, output, form, components or None, op, start, stop, progress=True)
    size = Path(output).stat().st_size
    if json_:
        show({"path": output, "format": form, "accesses": done, "bytes": size})
        return
    click.echo(f"{output}: {done:,} accesses as {form}, {si(size, 'B')}")


@trace.command("import", epilog="Example: epur trace import accesses.csv -o accesses.h5")
@click.argument("path", type=click.Path(dir_okay=False))
@output_option
@click.option(
    "--from", "form", type=click.Choice(list(IMPORTERS)), help="By default the suffix tells."
)
@as_json
def import_(path: str, output: str, form: str | None, json_: bool) -> None:
    """Make a trace of another tool's accesses (cycle, component, op, address, bytes)."""
    made = import_accesses(path, output, form or Path(path).suffix.lstrip("."), progress=True)
    if json_:
        show({"path": output, **made.info()})
        return
    click.echo(
        f"{output}: {made.count():,} accesses of {len(made.components)} components, "
        f"{si(Path(output).stat().st_size, 'B')}"
    )


@click.command("energy", epilog="Example: epur energy run.h5 --table epur-28nm:lop")
@click.argument("path")
@table_option
@as_json
def energy_(path: str, table: str, json_: bool) -> None:
    """Apply an energy table to a trace."""
    report = energy(Trace.open(path), EnergyTable.load(table))
    if json_:
        show(report.to_dict())
        return
    click.echo(f"{path}")
    show_report(report)


def show_report(report: Report) -> None:
    """Print a report's sums by group of components, with bars."""
    click.echo(
        f"\n  {si(report.total_pj * 1e-12, 'J')}: dynamic {si(report.dynamic_pj * 1e-12, 'J')}, "
        f"static {si(report.static_pj * 1e-12, 'J')}   (table {report.table})"
    )
    click.echo(
        f"  average {report.average_mw:.1f} mW (without DRAM {report.average_chip_mw:.1f} mW), "
        f"peak {report.peak_mw:.0f} mW, area {report.area_mm2:.1f} mm2\n"
    )
    if report.wider:
        priced = ", ".join(f"{name} as {unit}" for name, unit in sorted(report.wider.items()))
        click.echo(f"  priced as the next wider format: {priced}\n")
    groups = report.groups()
    total = report.total_pj or 1.0
    click.echo(f"  {'component':<14}{'dynamic':>12}{'static':>12}{'share':>9}")
    for name, cost in sorted(groups.items(), key=lambda item: -item[1].total_pj):
        share = cost.total_pj / total
        click.echo(
            f"  {name:<14}{si(cost.dynamic_pj * 1e-12, 'J'):>12}{si(cost.static_pj * 1e-12, 'J'):>12}"
            f"{share:>9.1%}  {'#' * round(share * BAR)}".rstrip()
        )
