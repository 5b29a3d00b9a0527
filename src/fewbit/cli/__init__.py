"""The command line; `main` is what the `fewbit` script calls."""

from fewbit.cli.application import main

__all__ = ["main"]
