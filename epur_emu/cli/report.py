"""``epur report``: a file's contents as one HTML page."""

from __future__ import annotations

import click

from epur_emu.cli.shared import as_json, check_output, show, table_option
from epur_emu.report import report


@click.command("report", epilog="Example: epur report run.h5 -o report.html")
@click.argument("path")
@click.option("-o", "--output", default="report.html", show_default=True, help="The HTML file.")
@table_option
@click.option("--figures", help="Write the figures to this folder too, as PNG and SVG.")
@as_json
def report_(path: str, output: str, table: str, figures: str | None, json_: bool) -> None:
    """Make one HTML file of a trace or of the results of `epur sweep`: figures, tables, how to reproduce.

    It opens offline, in light and dark, and asks for nothing from outside.
    """
    check_output(output, path)
    page = report(path, table, progress=True)
    size = page.save(output)
    drawn = page.save_figures(figures) if figures else []
    if json_:
        show({"report": output, "bytes": size, "figures": drawn, **page.data})
        return
    click.echo(f"{output}: {size:,} bytes")
    for name in drawn:
        click.echo(name)
