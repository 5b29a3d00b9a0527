"""GPTQ's inner loops where the tensors are: compiled for the CPU, batched for any other device."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from fewbit.algorithms import columns_batched, columns_compiled
from fewbit.formats.integer import Int
from fewbit.formats.number_format import NumberFormat
from fewbit.numerics.threads import threads_for


def grid_of(form: NumberFormat, like: Tensor, tables: Tensor | None = None) -> tuple[float, float, Tensor]:
    """Return (lowest code, highest code, levels) of a format; levels are empty for integers.

    Levels are (1, n) for all rows, or the `tables` (out, n) of learned ones.
    """
    if isinstance(form, Int):
        return float(form.qmin), float(form.qmax), like.new_empty(0, 0)
    levels = like.new_tensor(form.levels)[None] if tables is None else tables
    return 0.0, float(levels.shape[1] - 1), levels


def run(name: str, *arguments: Any) -> None:
    """Run a kernel; the compiled ones take NumPy views of the same memory, and float32 numbers."""
    if arguments[0].device.type != "cpu":
        getattr(columns_batched, name)(*arguments)
        return
    with threads_for(arguments[0].numel()):
        getattr(columns_compiled, name)(*(_as_numpy(argument) for argument in arguments))


def _as_numpy(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.numpy()
    if isinstance(argument, tuple):
        return tuple(_as_numpy(part) for part in argument)
    return np.float32(argument) if isinstance(argument, float) else argument
