"""``epur replay``: memory models over a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from epur_emu.cli.shared import as_json, check_output, check_plot, show, si
from epur_emu.plots import replay as plots
from epur_emu.replay import MEMORIES, Result, replay
from epur_emu.replay.dram import ARRIVALS, MAPPINGS, PAGES, REFRESHES, SCHEDULERS
from epur_emu.replay.lru import POLICIES
from epur_emu.replay.reuse import BANKINGS
from epur_emu.replay.sizes import parse_size, parse_sizes
from epur_emu.trace import Trace


def _curve(result: Result) -> None:
    errors = result.details.get("error") or [None] * len(result.curve or ())
    for (size, ratio), error in zip(result.curve or (), errors, strict=True):
        about = "" if error is None else f" +- {error:.5f}"
        click.echo(f"  {plots.label(size):>12}{ratio:>12.6f}{about}  {'#' * round(40 * ratio)}")


def _lru(result: Result) -> None:
    click.echo(f"\n  {'size':>12}{'miss ratio':>12}")
    _curve(result)


def _scratchpad(result: Result) -> None:
    click.echo(f"\n  {'component':<16}{'capacity':>14}{'smallest without re-fetch':>28}")
    for row in result.details["components"]:
        sizes = (plots.label(row["capacity_bytes"]), f"{row['smallest_bytes']:,} B")
        click.echo(f"  {row['component']:<16}{sizes[0]:>14}{sizes[1]:>28}")
    click.echo("\n  share of the bytes asked for that are fetched again, if each has that size")
    _curve(result)


def _reuse(result: Result) -> None:
    click.echo(
        f"\n  {'component':<16}{'requests':>16}{'footprint':>14}{'working set':>14}"
        f"{'bank conflicts':>16}"
    )
    for row in result.details["components"]:
        sizes = (plots.label(row["footprint_bytes"]), plots.label(row["largest_working_set_bytes"]))
        click.echo(
            f"  {row['component']:<16}{row['requests']:>16,}{sizes[0]:>14}{sizes[1]:>14}"
            f"{row['bank_conflicts']:>16,}"
        )


def _dram(result: Result) -> None:
    found = result.details
    counts = {name: n for name, n in found["commands"].items() if n}
    click.echo(
        f"\n  {found['standard']}, {found['channels']} channels, {found['scheduler']}, "
        f"{found['page']} page, {found['arrivals']}"
    )
    click.echo(
        f"  {si(found['bytes_moved'], 'B')} in {si(found['seconds'], 's')} "
        f"({found['clocks']:,} clocks): {si(found['bandwidth_bytes_per_s'], 'B/s')}, "
        f"{found['utilization']:.1%} of the peak"
    )
    click.echo(f"  {found['row_hit_rate']:.1%} of the requests hit an open row")
    click.echo("  commands      " + ", ".join(f"{name} {n:,}" for name, n in counts.items()))
    for name in ("read", "write"):
        if latency := found[f"{name}_latency_ns"]:
            parts = ", ".join(f"{key} {value:,.1f}" for key, value in latency.items())
            click.echo(f"  {name + ' latency':<14}{parts} ns")
    energy = found["energy_pj"]
    if energy is None:
        click.echo("  energy        not known: the standard has no currents")
        return
    click.echo(f"\n  {si(energy['total'] * 1e-12, 'J')}")
    for name, pj in energy.items():
        share = pj / energy["total"] if energy["total"] else 0.0
        if name != "total" and pj:
            label = name.replace("_", " ")
            row = f"  {label:<20}{si(pj * 1e-12, 'J'):>12}{share:>9.1%}  {'#' * round(24 * share)}"
            click.echo(row.rstrip())


#: How a model's result is printed and drawn.
SHOWN: dict[str, tuple[Callable[[Result], None], Callable[[Result, str], None]]] = {
    "scratchpad": (_scratchpad, plots.capacity),
    "lru": (_lru, plots.miss_ratio),
    "reuse": (_reuse, plots.reuse),
    "dram": (_dram, plots.dram),
}


@click.command("replay", epilog="Example: epur replay run.h5 --memory lru --component cu.i.weights")
@click.argument("path")
@click.option("--memory", type=click.Choice(list(MEMORIES)), required=True, help="The model.")
@click.option("--component", help="Names or patterns (cu.*.weights), joined by commas.")
@click.option("--sizes", help="64K:8M (doubling) or 64K,96K; of caches and buffers.")
@click.option("--line", help="Bytes of a line [64].")
@click.option("--ways", type=click.IntRange(1), help="Lines of a set; by default all are one set.")
@click.option("--policy", type=click.Choice(POLICIES), help="What a cache evicts [lru].")
@click.option("--sampling", type=float, help="Share of lines, or number of them, to sample.")
@click.option("--windows", type=click.IntRange(1), help="Windows of the working set [256].")
@click.option("--banking", type=click.Choice(BANKINGS), help="How banks share addresses.")
@click.option("--table", help="Energy table of the scratchpads.")
@click.option("--standard", help="DRAM: a preset (lpddr4-3733) or TOML file.")
@click.option("--channels", type=click.IntRange(1), help="DRAM: channels, instead of the standard's.")
@click.option("--mapping", help=f"DRAM: {', '.join(MAPPINGS)}, or fields such as rochrababgco.")
@click.option("--page", type=click.Choice(PAGES), help="DRAM: what becomes of a row [open].")
@click.option("--scheduler", type=click.Choice(SCHEDULERS), help="DRAM: order [fr-fcfs].")
@click.option("--queue", type=click.IntRange(1), help="DRAM: requests that a controller sees [32].")
@click.option("--cap", type=click.IntRange(1), help="DRAM: hits of a row that pass others [4].")
@click.option("--refresh", type=click.Choice(REFRESHES), help="DRAM: refreshes [all-bank].")
@click.option("--arrivals", type=click.Choice(ARRIVALS), help="DRAM: when requests come.")
@click.option("--clock", type=float, help="DRAM: cycles of the trace per second.")
@click.option("--commands", help="DRAM: write the commands to this CSV file (DRAMPower 5).")
@click.option("--plot", help="Draw to this file (.png, .svg, .pdf).")
@click.option("-o", "--output", help="Write the result to this HDF5 file.")
@as_json
def replay_(
    path: str,
    memory: str,
    component: str | None,
    plot: str | None,
    output: str | None,
    json_: bool,
    **given: Any,
) -> None:
    """Replay a trace through a memory model: miss ratios, capacities, reuse, DRAM."""
    check_output(output, path)
    check_plot(plot, path)
    options = {name: value for name, value in given.items() if value is not None}
    if "sizes" in options:
        options["sizes"] = parse_sizes(options["sizes"])
    if "line" in options:
        options["line"] = parse_size(options["line"])
    result = replay(Trace.open(path), memory, component, progress=True, **options)
    text, draw = SHOWN[memory]
    if output:
        result.save(output)
    if plot:
        draw(result, plot)
    if json_:
        show(result.to_dict())
        return
    click.echo(f"{path}: {result.requests:,} requests")
    text(result)
