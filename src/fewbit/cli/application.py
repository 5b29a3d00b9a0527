"""The `fewbit` command: its subcommands, and how errors leave it (exit code 2, no traceback without --debug)."""

from __future__ import annotations

import shlex
import sys
import traceback
from typing import Annotated

import typer

from fewbit.cli.demo import demo
from fewbit.cli.evaluate import evaluate
from fewbit.cli.inspect import inspect
from fewbit.cli.quantize import quantize
from fewbit.cli.support import support
from fewbit.errors import FewbitError, NotYetError

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


for command in (quantize, evaluate, inspect, support, demo):
    application.command(no_args_is_help=command not in (support, demo))(command)


def _later(name: str, what: str) -> None:
    @application.command(name, hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def later() -> None:
        raise NotYetError(f"fewbit {name} ({what}) is not in this version")


_later("convert", "between on-disk formats")
_later("compare", "reports side by side")
_later("verify", "file hashes")
_later("finetune", "quantization-aware training")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 an error that a person can mend, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        code = application(args=given, prog_name="fewbit", standalone_mode=False, obj=shlex.join(["fewbit", *given]))
    except typer.Exit as leave:
        code = leave.exit_code
    except _UsageProblem as error:
        error.show()  # type: ignore[attr-defined]
        code = 2
    except FewbitError as error:
        if debug:
            traceback.print_exc()
        else:
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
            sys.stderr.write(f"fewbit: {error}{notes}\n")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # typer turns Ctrl-C into this exit code by itself, or into Abort
        sys.stderr.write("fewbit: interrupted; nothing was written\n")
    sys.exit(code if isinstance(code, int) else 0)
