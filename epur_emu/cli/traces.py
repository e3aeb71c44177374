"""Commands on traces: ``epur trace``."""

from __future__ import annotations

import click

from epur_emu.cli.shared import as_json, show, si
from epur_emu.trace import Trace


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
