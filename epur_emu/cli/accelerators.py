"""``epur accelerators``: presets, as TOML files to start from; and how a run's cycles are shown."""

from __future__ import annotations

from typing import Any

import click

from epur_emu.accelerator import Accelerator, preset_text, presets
from epur_emu.cli.shared import as_json, show, si
from epur_emu.dataflow.timing import CAUSES


@click.command(epilog="Example: epur accelerators epur > mine.toml")
@click.argument("name", required=False)
@as_json
def accelerators(name: str | None, json_: bool) -> None:
    """List the presets, or print the one called NAME as a TOML file to start from."""
    if json_:
        names = presets() if name is None else [name]
        show({"accelerators": [Accelerator.load(each).to_dict() for each in names]})
        return
    if name is not None:
        click.echo(preset_text(name), nl=False)
        return
    click.echo(
        f"{'name':<14}{'dataflow':<14}{'clock':>9}{'weights/CU':>14}{'inputs/CU':>12}{'shared':>14}"
    )
    for each in map(Accelerator.load, presets()):
        sizes = each.weight_buffer_bytes, each.input_buffer_bytes, each.intermediate_bytes
        weights, inputs, shared = (f"{size / 1024:,.0f} KiB" for size in sizes)
        click.echo(
            f"{each.name:<14}{each.dataflow:<14}{si(each.clock_hz, 'Hz'):>9}"
            f"{weights:>14}{inputs:>12}{shared:>14}"
        )


def show_policies(meta: dict[str, Any]) -> None:
    """Say what was done where something did not fit, from a trace's meta data."""
    for policy in meta.get("policies", []):
        layer = f"{policy['layer']}, " if policy["layer"] else ""
        click.echo(f"  {layer}{policy['what']}: {policy['policy']} ({policy['detail']})")


def show_phases(meta: dict[str, Any]) -> None:
    """Print where a run's cycles went, phase by phase."""
    rows = meta.get("phases", [])
    width = max((len(row["layer"]) for row in rows), default=0) + 2
    heads = "".join(f"{cause:>12}" for cause in CAUSES)
    click.echo(f"\n  {'layer':<{width}}{'phase':<11}{'cycles':>14}{'busy':>8}{heads}")
    for row in rows:
        stalls = "".join(f"{row['stalls'][cause]:>12,}" for cause in CAUSES)
        click.echo(
            f"  {row['layer']:<{width}}{row['phase']:<11}{row['cycles']:>14,}"
            f"{row['utilisation']:>8.1%}{stalls}"
        )
