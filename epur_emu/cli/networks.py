"""Commands on networks: ``epur models, run, import, evaluate, calibrate``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from epur_emu import comparison, sequences
from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import arithmetic
from epur_emu.checkpoints.folder import Model, write_calibration
from epur_emu.checkpoints.importers import IMPORTERS
from epur_emu.cli.accelerators import show_phases, show_policies
from epur_emu.cli.energy import show_report
from epur_emu.cli.shared import (
    accelerator_option,
    arithmetic_option,
    as_json,
    check_output,
    dataflow_option,
    machine_of,
    show,
    si,
    table_option,
)
from epur_emu.energy import EnergyTable
from epur_emu.errors import EpurError, ModelError
from epur_emu.importing import import_checkpoint
from epur_emu.tasks.beam import MOST as MOST_BEAM
from epur_emu.zoo import list_models


@click.command(epilog="Example: epur models translate-en-de")
@click.argument("model", required=False)
@as_json
def models(model: str | None, json_: bool) -> None:
    """List the known models, or tell what the card of MODEL says (a name, or a folder).

    Of a list, a model that can't be read is told on standard error.
    """
    if model is not None:
        show_model(comparison.load_model(model), json_)
        return
    found = []
    for path in list_models().values():
        try:
            found.append(comparison.load_model(path))
        except EpurError as error:
            click.echo(f"epur: {error}", err=True)
    rows = comparison.rows(found)
    if json_:
        show({"models": rows})
        return
    arithmetics = comparison.SCORED
    click.echo(
        f"{'name':<18}{'task':<13}{'layers':>7}{'cells':>7}{'parameters':>12}  {'metric':<15}"
        + "".join(f"{name:>11}" for name in arithmetics)
    )
    for row in rows:
        score = row["score"]
        values = [score[name] for name in arithmetics]
        click.echo(
            f"{row['name']:<18}{row['task']:<13}{row['layers']:>7}{row['cells']:>7}"
            f"{row['parameters'] / 1e6:>10.2f} M  {score['metric'] or '':<15}"
            + "".join(f"{'-' if value is None else format(value, '.2f'):>11}" for value in values)
        )
        click.echo(f"{'':<18}licence: {row['licence'] or 'not stated'}")


def show_model(model: Model, json_: bool) -> None:
    """Print a model's card and the shapes of its passes."""
    (row,) = comparison.rows([model])
    passes = [
        {"network": network.name, "name": p.name, "inputs": p.inputs, "cells": p.cells,
         "peepholes": p.peepholes is not None, "parameters": p.parameters}
        for network in model.networks.values() for p in network.passes
    ]  # fmt: skip
    if json_:
        show({**row, "path": str(model.path), "passes": passes, "card": model.card})
        return
    click.echo(f"{model.name}: {model.card.get('summary', 'no summary')}\n")
    click.echo(f"  folder      {model.path}")
    click.echo(f"  task        {row['task']}")
    click.echo(f"  licence     {row['licence'] or 'not stated'}")
    for part in ("source", "data", "training"):
        given = model.card.get(part)
        for n, (key, value) in enumerate(given.items() if isinstance(given, dict) else ()):
            if not isinstance(value, dict | list):
                click.echo(f"  {'' if n else part:<12}{key}: {value}")
            elif key == "notes":
                click.echo("".join(f"  {'':<12}note: {note}\n" for note in value), nl=False)
    click.echo(f"\n  {'pass':<28}{'inputs':>8}{'cells':>8}{'parameters':>14}")
    for p in passes:
        peep = "   with peepholes" if p["peepholes"] else ""
        click.echo(
            f"  {p['name']:<28}{p['inputs']:>8,}{p['cells']:>8,}{p['parameters']:>14,}{peep}"
        )
    click.echo(f"  {'all, with the host':<44}{row['parameters']:>14,}")
    score = {
        k: v
        for k, v in row["score"].items()
        if isinstance(v, int | float) and k not in ("n", "beam")
    }
    if score:
        click.echo(f"\n  {row['score']['metric']}, measured {row['score'].get('date', 'undated')}")
        for name, value in score.items():
            click.echo(f"  {name:<28}{value:>8.2f}")
    how = " --inputs X.npy" if row["task"] == sequences.TASK else ""
    click.echo(f"\nRun it: epur run {model.path if how else model.name}{how}")


@click.command(epilog='Example: epur run translate-en-de "two dogs are playing in the snow ."')
@click.argument("model")
@click.argument("input", required=False)
@arithmetic_option
@accelerator_option
@dataflow_option
@table_option
@click.option(
    "--beam",
    default=1,
    show_default=True,
    type=click.IntRange(1, MOST_BEAM),
    help="Hypotheses kept while decoding.",
)
@click.option(
    "--trace",
    "trace_path",
    type=click.Path(dir_okay=False),
    help="Write the trace to this HDF5 file.",
)
@click.option(
    "--trace-mode", default="streams", show_default=True, type=click.Choice(["streams", "events"]),
    help="events: each access is performed on models of the memories, its data are checked, and it is "
    "logged by itself.",
)  # fmt: skip
@click.option(
    "--inputs",
    "inputs_paths",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="An array (T, I) in a .npy file, for a model without a task; several make a batch.",
)
@click.option(
    "--steps",
    multiple=True,
    type=click.IntRange(1),
    help="Time steps of random inputs instead; several times: a batch.",
)
@click.option("--seed", type=click.IntRange(0), help="Of random inputs.")
@click.option("--network", help="Which network of a model without a task.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False),
    help="Write the emulated outputs to this file: .npy (a batch's one after another), or of a model "
    "with a task .npz, pass by pass.",
)
@click.option("--phases", is_flag=True, help="Show where the cycles went, phase by phase.")
@click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(1),
    help="That evaluate the network; the results are the same.",
)  # fmt: skip
@as_json
def run(
    model: str, input: str | None, arithmetic_: str, accelerator: str, dataflow: str | None,
    table: str, beam: int, trace_path: str | None, trace_mode: str, inputs_paths: tuple[str, ...],
    steps: tuple[int, ...], seed: int | None, network: str | None, output: str | None, phases: bool,
    threads: int, json_: bool,
) -> None:  # fmt: skip
    """Run MODEL on INPUT (or on an example), float32 beside emulated, with cycles and energy.

    A model without a task (`epur import`) runs on the array --inputs, or on random numbers.
    """
    check_output(trace_path, *inputs_paths)
    check_output(output, *inputs_paths, *([trace_path] if trace_path else []))
    machine = machine_of(accelerator, dataflow)
    prices = EnergyTable.load(table)
    loaded = comparison.load_model(model)
    probed = trace_path if trace_mode == "events" else None
    if trace_mode == "events" and trace_path is None:
        raise ModelError(model, "--trace-mode events", "has no file", "add --trace FILE.h5")
    if loaded.card["task"] == sequences.TASK:
        if input is not None:
            raise ModelError(model, "INPUT", "is for models with a task", "use --inputs FILE.npy")
        found = sequences.choose(loaded, network)
        x = sequences.batch(found, inputs_paths, steps, seed)
        ran = sequences.run(
            loaded, x, arithmetic(arithmetic_), machine, prices, found.name, probed, threads
        )
        show_sequence(ran, machine, inputs_paths, output, trace_path, json_, phases)
        return
    if inputs_paths or steps or any(option is not None for option in (seed, network)):
        raise ModelError(
            model, "--inputs, --steps, --seed and --network",
            f"are for models without a task, this one's is {loaded.card['task']}", "leave them out",
        )  # fmt: skip
    done = comparison.run(
        loaded, input, arithmetic(arithmetic_), machine, prices, beam, probed, threads
    )
    if output:
        sequences.write_outputs(output, done.outputs)
    if trace_path and not probed:
        done.trace.save(trace_path)
    if json_:
        result = done.to_dict()
        result["emulated"]["path"] = output
        show({**result, **timing_of(done), "trace": trace_path})
        return
    same = "   (the same)" if done.same else ""
    width = max(len("float32"), len(done.arithmetic))
    click.echo(
        f"{done.model} on {place_of(machine)}, every operation rounded as {done.arithmetic} does\n"
    )
    click.echo(f"  {'input':<{width}}  {done.text}")
    click.echo(f"  {'float32':<{width}}  {done.float32.plain}")
    click.echo(f"  {done.arithmetic:<{width}}  {done.emulated.plain}{same}")
    pace = ""
    if done.real_time_factor is not None:
        pace = f", {done.real_time_factor:,.0f} times faster than real time"
    show_run(done, machine, trace_path, pace, phases)
    if output:
        click.echo(f"\n  outputs of each pass: {output}")


def place_of(machine: Accelerator) -> str:
    """An accelerator's name, and its dataflow where the name does not say it."""
    other = "" if machine.dataflow == machine.name else f" (dataflow {machine.dataflow})"
    return f"{machine.name}{other}"


def timing_of(done: comparison.Run | sequences.SequenceRun) -> dict[str, object]:
    """Phases and policies of a run, as its trace tells them."""
    return {key: done.trace.meta[key] for key in ("dataflow", "policies", "phases")}


def show_run(
    done: comparison.Run | sequences.SequenceRun, machine: Accelerator, trace: str | None,
    pace: str = "", phases: bool = False,
) -> None:  # fmt: skip
    """Print a run's errors by layer, its time, its energy, and where its trace is."""
    saturates = any(layer.saturation for layer in done.layers)
    click.echo(
        f"\n  {'layer':<22}{'largest error':>14}{'overflows':>11}{'underflows':>12}"
        f"{'saturations' if saturates else '':>{13 * saturates}}"
    )
    for layer in done.layers:
        click.echo(
            f"  {layer.name:<22}{layer.max_abs_error:>14.2e}{layer.overflow:>11,}{layer.underflow:>12,}"
            f"{f'{layer.saturation:>13,}' if saturates else ''}"
        )
    click.echo(
        f"\n  {done.cycles:,} cycles = {si(done.seconds, 's')} at {si(machine.clock_hz, 'Hz')}{pace}"
    )
    show_policies(done.trace.meta)
    if phases:
        show_phases(done.trace.meta)
    click.echo(f"  {done.trace.count():,} accesses of buffers and DRAM")
    show_report(done.report)
    if trace:
        click.echo(f"\n  trace: {trace} ({Path(trace).stat().st_size:,} bytes)")


def show_sequence(
    done: sequences.SequenceRun, machine: Accelerator, inputs: tuple[str, ...], output: str | None,
    trace: str | None, json_: bool, phases: bool = False,
) -> None:  # fmt: skip
    """Print a run without a task; write its outputs and its trace, where asked for."""
    if output:
        sequences.write_outputs(output, done.emulated)
    if trace and not done.probed:
        done.trace.save(trace)
    if json_:
        result = done.to_dict()
        result["input"]["path"] = inputs[0] if len(inputs) == 1 else inputs or None
        result["emulated"]["output"]["path"] = output
        show({**result, **timing_of(done), "trace": trace})
        return
    click.echo(
        f"{done.model} on {place_of(machine)}, every operation rounded as {done.arithmetic} does\n"
    )
    steps, width = done.inputs.shape
    click.echo(
        f"  input   {', '.join(inputs) or 'random numbers'}: {steps} time steps of {width}"
        f"{f', {len(done.lengths)} sequences' if len(done.lengths) > 1 else ''}\n"
        f"  output  {done.emulated.shape[1]} for each step, largest error "
        f"{abs(done.emulated - done.float32).max():.2e}{f', in {output}' if output else ''}"
    )
    if done.calibrated == "inputs":
        click.echo("  Ranges of inputs and partial sums were calibrated on these inputs themselves.")
    show_run(done, machine, trace, phases=phases)


@click.command("import", epilog="Example: epur import checkpoint.pt -o my-model")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--from", "form", help=f"One of {', '.join(IMPORTERS)}; by default the suffix tells.")
@click.option("--name", help="The model's name; by default that of the folder.")
@click.option(
    "--network", "prefixes", multiple=True, metavar="PREFIX",
    help="Take this network of the file only; may be given several times.",
)  # fmt: skip
@click.option(
    "--calibrate",
    type=click.Path(dir_okay=False),
    help="Sample inputs (T, I) in a .npy file, for the ranges of integer inputs and of E-PUR+MWL's "
    "stored partial sums.",
)
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(file_okay=False), help="The folder."
)
@as_json
def import_(
    file: str, form: str | None, name: str | None, prefixes: tuple[str, ...],
    calibrate: str | None, folder: str, json_: bool,
) -> None:  # fmt: skip
    """Import the LSTMs of a checkpoint as a model folder, without running any code in it."""
    done = import_checkpoint(file, folder, form, name, prefixes, calibrate)
    if json_:
        show(done.to_dict())
        return
    click.echo(f"{done.path}: model {done.name}, from {file} ({done.form})\n")
    for network in done.networks.values():
        click.echo(f"  network {network.name}, {network.parameters:,} parameters")
        for p in network.passes:
            click.echo(
                f"    {p.name:<28}{p.inputs:>6} inputs{p.cells:>6} cells"
                f"   {'with peepholes, ' if p.peepholes is not None else ''}from {done.origins[p.name]}"
            )
    for note in done.notes:
        click.echo(f"\n  note: {note}")
    which = f" --network {next(iter(done.networks))}" if len(done.networks) > 1 else ""
    click.echo(f"\nRun it: epur run {done.path}{which} --inputs X.npy")


@click.command(epilog="Example: epur evaluate translate-en-de --limit 100 --json")
@click.argument("model")
@arithmetic_option
@accelerator_option
@dataflow_option
@click.option("--limit", type=click.IntRange(1), help="Take only so many items, the first.")
@click.option(
    "--beam",
    type=click.IntRange(1, MOST_BEAM),
    help="Hypotheses kept while decoding; by default as the task's scores are measured.",
)
@click.option(
    "--jobs",
    default=os.cpu_count,
    show_default="one for each processor",
    type=click.IntRange(1),
    help="Processes that share the items; the answers do not depend on it.",
)
@as_json
def evaluate(
    model: str, arithmetic_: str, accelerator: str, dataflow: str | None, limit: int | None,
    beam: int | None, jobs: int, json_: bool,
) -> None:  # fmt: skip
    """Score MODEL on its data set (found through EPUR_DATA), float32 beside emulated."""
    scores = comparison.evaluate(
        comparison.load_model(model), arithmetic(arithmetic_), machine_of(accelerator, dataflow),
        limit, beam, jobs, progress=True,
    )  # fmt: skip
    result = scores.to_dict()
    if json_:
        show(result)
        return
    names = tuple(scores.metrics[0])
    widths = {name: max(8, len(name) + 2) for name in names}
    click.echo(
        f"{result['model']} on {result['accelerator']}, {result['n']} items, beam of {result['beam']}\n"
    )
    click.echo(f"  {'':<18}{''.join(f'{name:>{widths[name]}}' for name in names)}{'time':>12}")
    for name, metrics, seconds in zip(
        ("float32", result["arithmetic"]), scores.metrics, scores.seconds, strict=True
    ):
        values = "".join(f"{metrics[key]:>{widths[key]}.2f}" for key in names)
        click.echo(f"  {name:<18}{values}{seconds:>10.1f} s")
    for name, metrics in scores.baselines.items():
        values = "".join(f"{metrics[key]:>{widths[key]}.2f}" for key in names)
        click.echo(f"  {name:<18}{values}   (as the card says)")
    click.echo(f"\n  {result['same_outputs']} of {result['n']} outputs are the same")


@click.command(epilog="Example: epur calibrate translate-en-de --method percentile")
@click.argument("model")
@click.option(
    "--limit", default=200, show_default=True, type=click.IntRange(1), help="Training items."
)
@click.option("--bits", default=8, show_default=True, type=click.IntRange(2, 16), help="For mse.")
@click.option(
    "--method", default="max", show_default=True, type=click.Choice(["max", "percentile", "mse"]),
    help="How the range of inputs is chosen.",
)  # fmt: skip
@as_json
def calibrate(model: str, limit: int, bits: int, method: str, json_: bool) -> None:
    """Measure the ranges of MODEL's inputs and partial sums on training data, into its card."""
    loaded = comparison.load_model(model)
    alpha = comparison.calibrate(loaded, limit, bits, method, True)
    how = f"{limit} training items, {method}" + (f", {bits} bits" if method == "mse" else "")
    write_calibration(loaded.path, alpha, how)
    if json_:
        show({"model": loaded.name, "alpha": alpha})
        return
    for name, value in alpha.items():
        click.echo(f"  {name:<32}{value:>12.4g}")
    click.echo(f"{loaded.path}: calibrated on {how}")
