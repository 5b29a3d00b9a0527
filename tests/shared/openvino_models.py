"""Models in OpenVINO, of one core for all tests of a process.

Each core has a stack of its own for signals, which it gives this thread; when two go in the order in which they came,
the thread is left with one that is gone, and the next signal kills the process without a word.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import openvino


@functools.cache
def _core() -> openvino.Core:
    return openvino.Core()


def compiled(path: Path, options: Mapping[str, str]) -> openvino.CompiledModel:
    """Return the model of a file, compiled for this processor."""
    return _core().compile_model(str(path), "CPU", dict(options))
