"""The command line; `script` is what the `fewbit` script calls, `main` the same for arguments given from Python."""

from fewbit.cli.application import main, script

__all__ = ["main", "script"]
