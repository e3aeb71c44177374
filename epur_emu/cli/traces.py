"""Commands on traces: ``epur trace``, ``epur energy``."""

from __future__ import annotations

import click

from epur_emu.cli.shared import as_json, show, si, table_option
from epur_emu.energy import EnergyTable, Report, energy
from epur_emu.trace import Trace

BAR = 24


@click.group(epilog="Example: epur trace info run.h5")
def trace() -> None:
    """Look at a trace, or check it."""


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
