"""``epur energy``: what a trace costs, in figures and in a picture."""

from __future__ import annotations

import click

from epur_emu.cli.shared import as_json, check_plot, show, si, table_option
from epur_emu.energy import EnergyTable, Report, drams, energy
from epur_emu.energy.dram import DRAM_IDLE
from epur_emu.plots.energy import plot_energy
from epur_emu.trace import Trace

BAR = 24

#: Layers that are printed one by one; more of them are in the JSON object.
SHOWN_LAYERS = 40


@click.command("energy", epilog="Example: epur energy run.h5 --table epur-28nm:lop --plot run.png")
@click.argument("path")
@table_option
@click.option("--dram", help=f"Another DRAM than the table's: {', '.join(drams())}.")
@click.option("--dram-idle", type=click.Choice(DRAM_IDLE), help="What an idle DRAM does.")
@click.option("--temperature", type=int, metavar="KELVIN", help="Of the memories: 300 to 400.")
@click.option("--plot", metavar="FILE", help="Draw bars and a timeline: .png, .svg or .pdf.")
@as_json
def energy_(
    path: str, table: str, dram: str | None, dram_idle: str | None, temperature: int | None,
    plot: str | None, json_: bool,
) -> None:  # fmt: skip
    """Apply an energy table to a trace."""
    check_plot(plot, path)
    given = {"dram": dram, "dram_idle": dram_idle, "temperature_k": temperature}
    prices = EnergyTable.load(table)
    if chosen := {name: value for name, value in given.items() if value is not None}:
        prices = prices.varied(**chosen)
    trace = Trace.open(path)
    report = energy(trace, prices)
    if plot:
        plot_energy(trace, prices, report, plot)
    if json_:
        show(report.to_dict())
        return
    click.echo(f"{path}")
    show_report(report)
    show_parts(report)


def show_report(report: Report) -> None:
    """Print a report's sums by group of components, with bars."""
    click.echo(
        f"\n  {si(report.total_pj * 1e-12, 'J')}: dynamic {si(report.dynamic_pj * 1e-12, 'J')}, "
        f"static {si(report.static_pj * 1e-12, 'J')}   (table {report.table})"
    )
    click.echo(
        f"  average {report.average_mw:.1f} mW (without DRAM {report.average_chip_mw:.1f} mW), "
        f"peak {report.peak_mw:.0f} mW, area {report.area_mm2:.1f} mm2"
    )
    each = [
        f"{si(pj * 1e-12, 'J')} a {what}"
        for pj, what in (
            (report.pj_per_step, "time step"), (report.pj_per_mac, "multiply-accumulate")
        )
        if pj is not None
    ]  # fmt: skip
    click.echo(f"  {', '.join(each)}\n" if each else "")
    if report.wider:
        priced = ", ".join(f"{name} as {unit}" for name, unit in sorted(report.wider.items()))
        click.echo(f"  priced as the next wider format: {priced}\n")
    for warning in report.warnings:
        click.echo(f"  WARNING {warning}\n")
    groups = report.groups()
    total = report.total_pj or 1.0
    click.echo(f"  {'component':<14}{'dynamic':>12}{'static':>12}{'share':>9}")
    for name, cost in sorted(groups.items(), key=lambda item: -item[1].total_pj):
        share = cost.total_pj / total
        click.echo(
            f"  {name:<14}{si(cost.dynamic_pj * 1e-12, 'J'):>12}{si(cost.static_pj * 1e-12, 'J'):>12}"
            f"{share:>9.1%}  {'#' * round(share * BAR)}".rstrip()
        )


def show_parts(report: Report) -> None:
    """Print a report's sums by kind of phase and by layer."""
    dynamic = report.dynamic_pj or 1.0
    click.echo(f"\n  {'phase':<14}{'dynamic':>12}{'':>12}{'share':>9}")
    for kind, pj in report.by_kind().items():
        click.echo(f"  {kind:<14}{si(pj * 1e-12, 'J'):>12}{'':>12}{pj / dynamic:>9.1%}")
    layers = report.by_layer()
    wide = max((len(name) for name in layers), default=0)
    total = report.total_pj or 1.0
    click.echo(f"\n  {'layer':<{max(wide, 14)}}{'dynamic':>12}{'static':>12}{'share':>9}")
    for name, cost in list(layers.items())[:SHOWN_LAYERS]:
        click.echo(
            f"  {name or '(none)':<{max(wide, 14)}}{si(cost.dynamic_pj * 1e-12, 'J'):>12}"
            f"{si(cost.static_pj * 1e-12, 'J'):>12}{cost.total_pj / total:>9.1%}"
        )
    if len(layers) > SHOWN_LAYERS:
        click.echo(f"  and {len(layers) - SHOWN_LAYERS} more, see --json")
