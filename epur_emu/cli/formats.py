"""``epur formats``."""

from __future__ import annotations

import re

import click

from epur_emu.activations import errors
from epur_emu.cli.shared import as_json, show, table_option
from epur_emu.energy import EnergyTable
from epur_emu.format_table import LISTED, describe
from epur_emu.formats import parse


@click.command(epilog="Example: epur formats fp16 e4m3fn-sat q3.12")
@click.argument("names", nargs=-1)
@table_option
@click.option("--activations", is_flag=True, help="Error of each way to compute sigmoid and tanh.")
@click.option(
    "--format", "format_", default="fp16", show_default=True, help="The MU's, with --activations."
)
@click.option(
    "--segments",
    default="16,32,64,128,256",
    show_default=True,
    help="N of pwl-N, with --activations.",
)
@as_json
def formats(
    names: tuple[str, ...], table: str, activations: bool, format_: str, segments: str, json_: bool
) -> None:
    """List number formats (or those named), or with --activations the MU's errors."""
    if activations:
        show_activations(format_, segments, json_)
        return
    prices = EnergyTable.load(table)
    rows = [describe(parse(name), prices) for name in names or LISTED]
    if json_:
        show({"table": prices.name, "formats": rows})
        return

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    keys = ("min_positive", "min_normal", "max", "epsilon", "multiply_pj", "add_pj")
    titles = ("bits", "bytes", "min positive", "min normal", "max", "epsilon", "mul pJ", "add pJ")
    click.echo(f"{'format':<14}" + "".join(f"{title:>13}" for title in titles))
    for row in rows:
        cells = [f"{row['bits']:g}", str(row["bytes"]), *(cell(row[key]) for key in keys)]
        click.echo(f"{row['name']:<14}" + "".join(f"{text:>13}" for text in cells))
    click.echo(
        f"\nenergies: table {prices.name}, '-' where it has none; int and mx formats: codes and elements,"
        " to be multiplied by their scale"
    )


def show_activations(format_: str, segments: str, json_: bool) -> None:
    """Print the exhaustive error of each method over all inputs of a format."""
    if not re.fullmatch(r"\d+(,\d+)*", segments):
        raise click.UsageError("--segments takes numbers with commas between: 16,32")
    methods = ["epur", "exact", *(f"pwl-{int(n)}" for n in segments.split(","))]
    found = [one for method in methods for one in errors(method, parse(format_))]
    if json_:
        show({"format": format_, "activations": [one.to_dict() for one in found]})
        return
    click.echo(f"every finite input of {format_} ({found[0].inputs:,}), to nearest even\n")
    titles = ("largest", "mean", "largest ulp", "mean ulp", "worst at")
    click.echo(f"{'function':<10}{'method':<10}" + "".join(f"{title:>13}" for title in titles))
    for one in sorted(found, key=lambda one: one.function):
        numbers = (one.max_abs, one.mean_abs, one.max_ulp, one.mean_ulp, one.worst)
        click.echo(
            f"{one.function:<10}{one.method:<10}"
            + "".join(f"{number:>13.4g}" for number in numbers)
        )
