"""What the commands share: options, and how numbers are printed."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from typing import Any

import click

from epur_emu import plots
from epur_emu.accelerator import Accelerator, presets
from epur_emu.arithmetic import ARITHMETICS
from epur_emu.dataflow import DATAFLOWS, dataflow_of
from epur_emu.errors import EpurError
from epur_emu.trace.files import check_replaceable
from epur_emu.units import si as si

as_json = click.option(
    "--json", "json_", is_flag=True, help="Print one JSON object and nothing else."
)
table_option = click.option(
    "--table",
    default="epur-28nm",
    show_default=True,
    help="Energy table: a preset (NAME, NAME:CELL or NAME:PORTS) or a TOML file.",
)
arithmetic_option = click.option(
    "--arithmetic", "arithmetic_", default="epur-fp16", show_default=True,
    help=f"One of {', '.join(ARITHMETICS)}, epur-FORMAT, or a TOML file; epur-fp16+fp16 keeps MWL's "
    "partial sums in fp16.",
)  # fmt: skip
accelerator_option = click.option(
    "--accelerator",
    default="epur",
    show_default=True,
    help=f"A preset ({', '.join(presets())}) or a TOML file; `epur accelerators NAME` prints one.",
)
dataflow_option = click.option(
    "--dataflow", help=f"One of {', '.join(DATAFLOWS)}; by default the accelerator's own."
)


def machine_of(accelerator: str, dataflow: str | None) -> Accelerator:
    """The accelerator that two options name."""
    machine = Accelerator.load(accelerator)
    if dataflow is not None:
        machine = replace(machine, dataflow=dataflow)
    dataflow_of(machine)
    return machine


def check_output(output: str | None, *read: str) -> None:
    """Refuse to write over what is read or written besides, over a device, or where no folder is.

    Files are made beside their place and renamed into it, whatever stands there.

    Raises
    ------
    EpurError
    """
    if output is None:
        return
    if any(os.path.realpath(output) == os.path.realpath(path) for path in read):
        raise EpurError(output, "", "is read or written already", "write to another file")
    if not os.path.isdir(folder := os.path.dirname(os.path.abspath(output))):
        raise EpurError(
            output, "", f"can't be written (No such file or directory: {folder})",
            "make the folder, or choose another place",
        )  # fmt: skip
    check_replaceable(output)


def check_plot(path: str | None, *read: str) -> None:
    """The same for a figure, whose suffix tells the format and which needs matplotlib."""
    check_output(path, *read)
    if path is not None:
        plots.check(path)


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
