"""`python -m fewbit` is the command `fewbit`."""

from fewbit.cli import script

script()
