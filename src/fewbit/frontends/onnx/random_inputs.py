"""Inputs that a graph can be run on where there are no data: normal numbers, and small indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

Numbers = np.ndarray[Any, Any]
#: Sizes of what the graph leaves open: the first axis, and any other.
_FIRST, _OTHER = 2, 16


def random_inputs(graph: ir.Graph, seed: int = 0) -> dict[str, Numbers]:
    """Return an array for each input of `graph`, of its type and, as far as it is declared, its shape."""
    random = np.random.default_rng(seed)
    return {value.name or "": _random(random, value) for value in graph.inputs if value.name not in graph.initializers}


def _random(random: np.random.Generator, value: ir.Value) -> Numbers:
    dims = value.shape if value.shape is not None else (None,)
    shape = [dim if isinstance(dim, int) else _OTHER if axis else _FIRST for axis, dim in enumerate(dims)]
    dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    if dtype.kind in "iub":
        return random.integers(0, 2, shape).astype(dtype)
    return random.normal(size=shape).astype(dtype)
