"""``epur sweep``: a study, from its TOML file to its results."""

from __future__ import annotations

import os
from typing import Any

import click

from epur_emu.cli.shared import as_json, check_output, show, si
from epur_emu.study import Results, study


@click.command(epilog="Example: epur sweep studies/precision.toml -o precision.h5 --limit 50")
@click.argument("file", metavar="STUDY.toml", type=click.Path(dir_okay=False))
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False),
    help="HDF5 file of the results.",
)  # fmt: skip
@click.option(
    "--jobs",
    default=os.cpu_count,
    show_default="one for each processor",
    type=click.IntRange(1),
    help="Processes; the results do not depend on it.",
)
@click.option("--dask", metavar="ADDRESS", help="Use the workers of this Dask scheduler instead.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted study.")
@click.option("--search", is_flag=True, help="Look for the cheapest formats: see [search].")
@click.option("--limit", type=click.IntRange(1), help="Take only so many items, the first.")
@click.option("--csv", "csv_", type=click.Path(dir_okay=False), help="Write the points here too.")
@as_json
def sweep(
    file: str, output: str, jobs: int, dask: str | None, resume: bool, search: bool,
    limit: int | None, csv_: str | None, json_: bool,
) -> None:  # fmt: skip
    """Run a study: each of its models in each arithmetic on each accelerator, with each energy table.

    Results are kept as they come; after an interruption, go on with --resume.
    """
    check_output(csv_, file, output)
    done = study(
        file, output, jobs=jobs, dask=dask, resume=resume, limit=limit, search=search, progress=True,
    )  # fmt: skip
    if csv_:
        done.to_csv(csv_)
    if json_:
        show({**done.to_dict(), "output": output, "csv": csv_})
        return
    _show(done)
    click.echo(f"\n{output}: {len(done.points)} points" + (f"; {csv_}" if csv_ else ""))


def _show(done: Results) -> None:
    """A line for each point, those of one model on one accelerator together; then what was found."""
    width = max((len(p["arithmetic"]) for p in done.points), default=0)
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for p in done.points:
        groups.setdefault((p["model"], p["accelerator"], p["table"]), []).append(p)
    problems: dict[str, int] = {}
    for (model, machine, table), points in groups.items():
        first = points[0]
        metric = first["metric"] or "no metric"
        wanted = ""
        if first["float32"] is not None:
            wanted = f", float32 {first['float32']:.4g}, {first['n']:,} items"
        click.echo(f"\n{model} on {machine}, {table}: {metric}{wanted}")
        click.echo(
            f"  {'arithmetic':<{width}}{metric:>16}{'loss':>9}{'bits/weight':>13}{'time':>13}"
            f"{'energy':>13}"
        )
        for p in points:
            note = ""
            if p["problem"]:
                note = f"  [{problems.setdefault(p['problem'], len(problems) + 1)}]"
            click.echo(f"  {p['arithmetic']:<{width}}{_numbers(p)}{note}")
    click.echo("\ntime and energy: mean of an item")
    for problem, number in problems.items():
        click.echo(f"[{number}] {problem}")
    for found in done.searches:
        click.echo(
            f"\n{found['model']} on {found['accelerator']}, from {found['arithmetic']}: "
            f"{found['metric']} may lose {found['loss_allowed']:g}; {found['evaluations']} evaluations"
        )
        if found["chosen"] is None:
            click.echo("  no format keeps that")
            continue
        saved = 100 * (1 - found["weight_bits"] / found["uniform_bits"])
        click.echo(
            f"  {found['chosen']}: loss {found['loss']:.4g}, {found['weight_bits'] / 8e6:.3f} MB of weights,"
            f" {saved:.0f} % less than {found['uniform']} everywhere"
        )
        for name, form in found["formats"].items():
            click.echo(f"    {name:<28}{form}")


def _numbers(p: dict[str, Any]) -> str:
    def shown(value: float | None, form: str, width: int) -> str:
        return f"{'-' if value is None else format(value, form):>{width}}"

    energy, seconds = p["energy_pj"], p["seconds"]
    return (
        shown(p["emulated"], ".4g", 16) + shown(p["loss"], ".3g", 9)
        + shown(p["bits"]["weight"], ".3g", 13)
        + f"{'-' if seconds is None else si(seconds, 's'):>13}"
        + f"{'-' if energy is None else si(energy['total'] * 1e-12, 'J'):>13}"
    )  # fmt: skip
