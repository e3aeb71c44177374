"""The command line: ``epur ...``. Thin: it reads options, calls the package and prints."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from epur_emu import comparison
from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS, arithmetic
from epur_emu.energy import EnergyTable, Report, energy
from epur_emu.errors import EpurError
from epur_emu.trace import Trace
from epur_emu.version import __version__
from epur_emu.zoo import list_models

BAD_INPUT = 2
INTERRUPTED = 130
BAR = 24

as_json = click.option(
    "--json", "json_", is_flag=True, help="Print one JSON object and nothing else."
)
table_option = click.option(
    "--table",
    default="epur-28nm",
    show_default=True,
    help="Energy table: a preset (NAME or NAME:CELL) or TOML file.",
)
arithmetic_option = click.option(
    "--arithmetic", "arithmetic_", default="epur-fp16", show_default=True,
    help=f"One of {', '.join(ARITHMETICS)}; epur-fp16+fp16 keeps MWL's partial sums in fp16.",
)  # fmt: skip
accelerator_option = click.option(
    "--accelerator",
    default="epur",
    show_default=True,
    help="A preset (epur, epur-mwl) or a TOML file.",
)


def plain(value: Any) -> Any:
    """The same value with numbers that JSON can't hold as null."""
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def show(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False))


def si(value: float, unit: str) -> str:
    """A number with a metric prefix, four digits: ``12.35 uJ``."""
    if not value:
        return f"0 {unit}"
    power = max(-4, min(3, math.floor(math.log10(abs(value)) / 3)))
    return f"{value / 1000.0**power:.4g} {['p', 'n', 'u', 'm', '', 'k', 'M', 'G'][power + 4]}{unit}"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: epur run translate-en-de",
)
@click.version_option(__version__, prog_name="epur")
def cli() -> None:
    """Emulate the E-PUR accelerator: LSTM networks in its arithmetic, its accesses, its energy."""


@cli.command(epilog="Example: epur models --json")
@as_json
def models(json_: bool) -> None:
    """List the known models."""
    rows = comparison.rows([comparison.load_model(path) for path in list_models().values()])
    if json_:
        show({"models": rows})
        return
    for row in rows:
        score = row["score"]
        known = [f"{key} {value}" for key, value in score.items() if isinstance(value, float)]
        click.echo(
            f"{row['name']:<20} {row['task']:<12} {row['layers']} layers ({row['passes']} passes), "
            f"{row['cells']} cells, {row['parameters'] / 1e6:.2f} M parameters; "
            f"{score.get('metric') or 'no score'} {', '.join(known)}"
        )
        click.echo(f"{'':<20} licence: {row['licence']}")


@cli.command(epilog='Example: epur run translate-en-de "two dogs are playing in the snow ."')
@click.argument("model")
@click.argument("input", required=False)
@arithmetic_option
@accelerator_option
@table_option
@click.option(
    "--beam",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Hypotheses kept while decoding.",
)
@click.option(
    "--trace",
    "trace_path",
    type=click.Path(dir_okay=False),
    help="Write the trace to this HDF5 file.",
)
@as_json
def run(
    model: str, input: str | None, arithmetic_: str, accelerator: str, table: str, beam: int,
    trace_path: str | None, json_: bool,
) -> None:  # fmt: skip
    """Run MODEL on INPUT (or on an example), float32 beside emulated, with cycles and energy."""
    machine = Accelerator.load(accelerator)
    prices = EnergyTable.load(table)
    done = comparison.run(
        comparison.load_model(model), input, arithmetic(arithmetic_), machine, prices, beam
    )
    if trace_path:
        done.trace.save(trace_path)
    if json_:
        show({**done.to_dict(), "trace": trace_path})
        return
    same = "   (the same)" if done.emulated.symbols == done.float32.symbols else ""
    width = max(len("float32"), len(done.arithmetic))
    click.echo(
        f"{done.model} on {done.accelerator}, every operation rounded as {done.arithmetic} does\n"
    )
    click.echo(f"  {'input':<{width}}  {done.text}")
    click.echo(f"  {'float32':<{width}}  {done.float32.plain}")
    click.echo(f"  {done.arithmetic:<{width}}  {done.emulated.plain}{same}\n")
    click.echo(f"  {'layer':<22}{'largest error':>14}{'overflows':>11}{'underflows':>12}")
    for layer in done.layers:
        click.echo(
            f"  {layer.name:<22}{layer.max_abs_error:>14.2e}{layer.overflow:>11,}{layer.underflow:>12,}"
        )
    pace = ""
    if done.real_time_factor is not None:
        pace = f", {done.real_time_factor:,.0f} times faster than the sentence is spoken"
    click.echo(
        f"\n  {done.cycles:,} cycles = {si(done.seconds, 's')} at {si(machine.clock_hz, 'Hz')}{pace}"
    )
    click.echo(f"  {done.trace.count():,} accesses of buffers and DRAM")
    show_report(done.report)
    if trace_path:
        click.echo(f"\n  trace: {trace_path} ({Path(trace_path).stat().st_size:,} bytes)")


@cli.command(epilog="Example: epur evaluate translate-en-de --limit 100 --json")
@click.argument("model")
@arithmetic_option
@accelerator_option
@click.option("--limit", type=click.IntRange(1), help="Take only so many items, the first.")
@click.option(
    "--beam",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="Hypotheses kept while decoding.",
)
@as_json
def evaluate(
    model: str, arithmetic_: str, accelerator: str, limit: int | None, beam: int, json_: bool
) -> None:
    """Score MODEL on its data set (found through EPUR_DATA), float32 beside emulated."""
    scores = comparison.evaluate(
        comparison.load_model(model),
        arithmetic(arithmetic_),
        Accelerator.load(accelerator),
        limit,
        beam,
        True,
    )
    result = scores.to_dict()
    if json_:
        show(result)
        return
    click.echo(f"{result['model']}: {result['metric']} over {result['n']} items")
    click.echo(
        f"  {'float32':<16}{result['float32']:>8.2f}   {result['seconds']['float32']:>8.1f} s"
    )
    click.echo(
        f"  {result['arithmetic']:<16}{result['emulated']:>8.2f}   {result['seconds']['emulated']:>8.1f} s"
        f"   on {result['accelerator']}; {result['same_outputs']} of {result['n']} outputs the same"
    )


@cli.group(epilog="Example: epur trace info run.h5")
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


@cli.command("energy", epilog="Example: epur energy run.h5 --table epur-28nm:lop")
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
    groups = report.groups()
    total = report.total_pj or 1.0
    click.echo(f"  {'component':<14}{'dynamic':>12}{'static':>12}{'share':>9}")
    for name, cost in sorted(groups.items(), key=lambda item: -item[1].total_pj):
        share = cost.total_pj / total
        click.echo(
            f"  {name:<14}{si(cost.dynamic_pj * 1e-12, 'J'):>12}{si(cost.static_pj * 1e-12, 'J'):>12}"
            f"{share:>9.1%}  {'#' * round(share * BAR)}".rstrip()
        )


def _leave(message: str, code: int) -> NoReturn:
    click.echo(f"epur: {' '.join(message.split())}", err=True)
    sys.exit(code)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input ends in one line and exit status 2."""
    command: Callable[..., Any] = cli.main
    try:
        command(args=arguments, prog_name="epur", standalone_mode=False)
    except EpurError as error:
        _leave(str(error), BAD_INPUT)
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f"; see {error.ctx.command_path} --help"
        _leave(f"{error.format_message().rstrip('.')}{hint}", BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        _leave("interrupted", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
