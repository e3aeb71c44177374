"""``epur paper``: the paper's networks and figures beside ours."""

from __future__ import annotations

import click

from epur_emu.baseline import Baseline
from epur_emu.cli.shared import as_json, check_plot, show, table_option
from epur_emu.energy import EnergyTable
from epur_emu.paper import FOLLOWED, Figure, Settings, figures, sensitivity
from epur_emu.plots.paper import plot_paper


@click.command(epilog="Example: epur paper --plot paper.png")
@table_option
@click.option(
    "--baseline", default="tegra-x1", show_default=True,
    help="What E-PUR is compared with: tegra-x1, core-i7-6700k or a TOML file.",
)  # fmt: skip
@click.option("--sensitivity", "vary", is_flag=True, help="Vary each open assumption alone.")
@click.option("--plot", metavar="FILE", help="Draw the figures: .png, .svg or .pdf.")
@as_json
def paper(table: str, baseline: str, vary: bool, plot: str | None, json_: bool) -> None:
    """Put the figures of the E-PUR paper (arXiv 1711.07480) beside ours.

    Only the networks' shapes are needed, no weights. The baseline is analytic.
    """
    check_plot(plot)
    settings = Settings(EnergyTable.load(table), Baseline.load(baseline))
    found = figures(settings)
    rows = sensitivity(settings) if vary else []
    if plot:
        plot_paper(found, plot)
    if json_:
        made = {"figures": [f.to_dict() for f in found], "table": table, "baseline": baseline}
        if vary:
            keys = ("name", "network", "dataflow")
            made["sensitivity"] = [
                {
                    "assumption": text,
                    "figures": [
                        {**dict(zip(keys, key, strict=True)), "ours": value}
                        for key, value in zip(FOLLOWED, values, strict=True)
                    ],
                }
                for text, values in rows
            ]
        show(made)
        return
    click.echo(f"table {table}, compared with {settings.baseline.summary} (analytic)\n")
    click.echo(f"  {'figure':<50}{'network':<11}{'dataflow':<10}{'paper':>8}{'ours':>10}{'':>9}")
    for f in found:
        click.echo(_line(f))
    if rows:
        click.echo("\n  what each assumption moves, alone:\n")
        heads = [f"{name}, {dataflow}" for name, _, dataflow in FOLLOWED]
        click.echo(f"  {'':<52}" + "".join(f"{head:>28}" for head in heads))
        for text, values in rows:
            click.echo(
                f"  {text:<52}"
                + "".join(f"{'-' if v is None else format(v, '.4g'):>28}" for v in values)
            )


def _line(f: Figure) -> str:
    published = "" if f.published is None else f"{f.published:.4g}"
    sign = {"least": ">= ", "most": "< "}.get(f.bound, "")
    relative = "" if f.relative is None else f"{f.relative:+.1%}"
    if f.bound and f.relative == 0:
        relative = "kept"
    ours = "-" if f.ours is None else f"{f.ours:.4g}"
    line = (
        f"  {f.name:<50}{f.network:<11}{f.dataflow:<10}{sign + published:>8}{ours:>10}{relative:>9}"
    )
    return f"{line}  {f.unit}"
