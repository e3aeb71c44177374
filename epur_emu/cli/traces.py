"""Commands on traces: ``epur trace``."""

from __future__ import annotations

import os
import sys
from itertools import chain
from pathlib import Path

import click

from epur_emu.cli.shared import as_json, check_output, show, si
from epur_emu.streams import OPS
from epur_emu.trace import Trace
from epur_emu.trace.exporters import EXPORTERS, IMPORTERS, export, import_accesses, window
from epur_emu.trace.exporters.csv import Csv


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
    help="Only accesses of this memory, or of those that fit a pattern (cu.*.weights); may be given "
    "several times, or joined by commas.",
)  # fmt: skip
op_option = click.option("--op", type=click.Choice(OPS), help="Only reads, or only writes.")
start_option = click.option(
    "--start", default=0, type=click.IntRange(0), help="Only from this cycle on."
)
stop_option = click.option("--stop", type=click.IntRange(0), help="Only before this cycle.")
output_option = click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False), help="The file to write."
)


def _chosen(opened: Trace, patterns: tuple[str, ...]) -> tuple[str, ...] | None:
    """Components that patterns fit; None for all."""
    return opened.fitting(",".join(patterns)) if patterns else None


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
    check_output(output, path)
    opened = Trace.open(path)
    if output:
        export(opened, output, "csv", _chosen(opened, components), op, start, stop, progress=True)
        return
    out = sys.stdout.buffer
    parts = window(opened, _chosen(opened, components), op, start, stop)
    first = next(parts, None)  # what can't be given is refused before the header is printed
    try:
        writer = Csv(out, opened.components, {})
        for part in parts if first is None else chain([first], parts):
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
    """Write a trace's single accesses for another tool.

    Formats without names of memories take the DRAM's, if no other is named.
    """
    check_output(output, path)
    opened = Trace.open(path)
    chosen = _chosen(opened, components)
    done = export(opened, output, form, chosen, op, start, stop, progress=True)
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
    check_output(output, path)
    made = import_accesses(path, output, form or Path(path).suffix.lstrip("."), progress=True)
    if json_:
        show({"path": output, **made.info()})
        return
    click.echo(
        f"{output}: {made.count():,} accesses of {len(made.components)} components, "
        f"{si(Path(output).stat().st_size, 'B')}"
    )
