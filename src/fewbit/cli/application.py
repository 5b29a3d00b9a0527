"""The `fewbit` command: its subcommands, and how errors and signals leave it."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from typing import Annotated

import typer

from fewbit.cli.compare import compare
from fewbit.cli.convert import convert
from fewbit.cli.demo import demo
from fewbit.cli.evaluate import evaluate
from fewbit.cli.finetune import finetune
from fewbit.cli.imatrix import imatrix
from fewbit.cli.inspect import inspect
from fewbit.cli.interruption import Interruptible
from fewbit.cli.quantize import quantize
from fewbit.cli.sensitivity import sensitivity
from fewbit.cli.support import support
from fewbit.cli.verify import verify
from fewbit.errors import FewbitError

# typer carries a click of its own, older ones used the installed one; BadParameter hangs below this class in both.
_UsageProblem: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

_INTERRUPTED = 130

application = typer.Typer(
    name="fewbit",
    help="Make trained neural networks smaller by storing their numbers in fewer bits, and see what it cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@application.callback(invoke_without_command=True)
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Options that stand before the subcommand."""
    del debug  # `main` has taken it out of the arguments already; here it is only described
    if version:
        import fewbit

        typer.echo(f"fewbit {fewbit.__version__}")
        raise typer.Exit


for command in (
    quantize, sensitivity, finetune, evaluate, compare, inspect, convert, verify, imatrix, support, demo,
):  # fmt: skip
    application.command(no_args_is_help=command not in (support, demo))(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    0 done, 2 an error that a person can mend, 1 a defect of fewbit, 128 and the number of a signal that ended it.
    """
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    ending = Interruptible()
    try:
        with ending:
            code = application(
                args=given, prog_name="fewbit", standalone_mode=False, obj=shlex.join(["fewbit", *given])
            )
    except typer.Exit as leave:
        code = leave.exit_code
    except _UsageProblem as error:
        error.show()  # type: ignore[attr-defined]
        code = 2
    except BrokenPipeError:
        code = _broken_pipe()
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            sys.stderr.write(f"fewbit: {_sentence(error)}\n")
        code = 2 if isinstance(error, (FewbitError, MemoryError)) else 1
    if code == _INTERRUPTED or ending.code:  # typer turns Ctrl-C into this exit code by itself, or into Abort
        code = ending.code or _INTERRUPTED
        left = "no half model is left behind" if ending.kept is None else f"--resume goes on with {ending.kept}"
        sys.stderr.write(f"fewbit: interrupted; {left}\n")
    sys.exit(code if isinstance(code, int) else 0)


def script() -> None:
    """Run the command line of this process; what the `fewbit` script calls."""
    try:
        main()
    except SystemExit as leave:
        if not isinstance(leave.code, int) or leave.code <= 128:
            raise
        # Python remembers a Ctrl-C that came while other code was being imported, and would end by that instead.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(leave.code)


def _sentence(error: Exception) -> str:
    """Return what a person is told of an error."""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
    if isinstance(error, FewbitError):
        return f"{error}{notes}"
    # That of torch for a device is no MemoryError; it derives from RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; calibrate with fewer samples (--samples, --calibration-length), or on a larger machine"
    return f"{type(error).__name__}: {error}{notes}; this is a defect of fewbit, --debug shows where"


def _broken_pipe() -> int:
    """Return the exit code of a command whose reader went away (`fewbit inspect model | head`)."""
    # What Python flushes when it ends would fail once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13
