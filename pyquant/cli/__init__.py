"""The command line: a table of commands, each loaded when it is used, and what happens to errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

import click

import pyquant
from pyquant import console
from pyquant.errors import PyquantError
from pyquant.extras import missing_dependency

COMMANDS: dict[str, str] = {  # in the order of --help; each module has its command under the name `command`
    "compress": "pyquant.cli.compress",
    "import": "pyquant.cli.import_checkpoint",
    "calibrate": "pyquant.cli.calibrate",
    "inspect": "pyquant.cli.inspect",
    "run": "pyquant.cli.run",
    "eval": "pyquant.cli.evaluate",
    "bench": "pyquant.cli.bench",
    "profile": "pyquant.cli.profile",
    "export": "pyquant.cli.export",
    "demo": "pyquant.cli.demo",
}

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name]).command
        return command


@click.command(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pyquant.__version__, prog_name="pyquant")
@click.pass_context
def commands(context: click.Context) -> None:
    """Compress trained vision networks into small .pqmodel files, and run those on a CPU without PyTorch.

    A first walk: pyquant compress resnet18 --weights resnet18.pth --calibration pictures.zip --out resnet18.pqmodel,
    then pyquant run resnet18.pqmodel cat.jpg. Each command explains itself: pyquant COMMAND --help.
    """
    console.enable()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 2 after an error of the user's or the system's, or 130 on Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a file's name need not be text, nor text fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        code = commands.main(arguments, prog_name="pyquant", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except PyquantError as error:
        return _fail(str(error))
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
        return _fail(error.format_message() + hint)
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output is gone, as in `pyquant inspect X | head`; the interpreter must not flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except ImportError as error:
        if (missing := missing_dependency(error)) is None:
            raise
        return _fail(str(missing))


def _fail(message: str, code: int = EXIT_ERROR) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
