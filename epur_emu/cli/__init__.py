"""The command line: ``epur ...``. Thin: it reads options, calls the package and prints.

A new command is a function of one of these modules, and one entry of `COMMANDS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from epur_emu.cli import (
    accelerators,
    energy,
    formats,
    networks,
    paper,
    replay,
    report,
    study,
    traces,
)
from epur_emu.errors import EpurError
from epur_emu.version import __version__

BAD_INPUT = 2
INTERRUPTED = 130
# What click 8.2 and later raise where no command is given; those before print the help themselves.
NO_COMMAND = getattr(click.exceptions, "NoArgsIsHelpError", ())

COMMANDS = (
    networks.models,
    accelerators.accelerators,
    networks.run,
    networks.import_,
    networks.evaluate,
    networks.calibrate,
    traces.trace,
    energy.energy_,
    replay.replay_,
    report.report_,
    formats.formats,
    paper.paper,
    study.sweep,
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: epur run translate-en-de",
)
@click.version_option(__version__, prog_name="epur")
def cli() -> None:
    """Emulate the E-PUR accelerator: LSTM networks in its arithmetic, its accesses, its energy."""


for command in COMMANDS:
    cli.add_command(command)


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
        if isinstance(error, NO_COMMAND):
            click.echo(error.format_message(), err=True)
            sys.exit(BAD_INPUT)
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f"; see {error.ctx.command_path} --help"
        _leave(f"{error.format_message().rstrip('.')}{hint}", BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        _leave("interrupted", INTERRUPTED)
    except MemoryError as error:
        _leave(f"memory: is not enough ({error}); give less at once, or fewer --jobs", BAD_INPUT)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # what no reader or writer foresaw: a full disk, a name too long
        _leave(f"{error.filename or 'system'}: {error.strerror or error}", BAD_INPUT)
