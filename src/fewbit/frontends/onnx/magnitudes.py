"""How large numbers get: the weight of a layer, and what goes in and comes out of layers while batches run.

max |w|, max |x|, max |y|; a cast that ends below would overflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.errors import NonFiniteError
from fewbit.frontends.onnx.batches import Numbers
from fewbit.frontends.onnx.calibration import gather
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import OnnxModel


def largest_weight(layer: GraphLayer) -> float:
    """Return the largest magnitude."""
    assert layer.weight.const_value is not None
    return float(np.abs(layer.weight.const_value.numpy()).max(initial=0.0))


def largest_activations(
    model: OnnxModel, names: Sequence[str], batches: Sequence[Any]
) -> dict[str, tuple[float, float]]:
    """Return the largest magnitudes of the input and the output of layers; onnxruntime shows none inside of a branch.

    Raises:
        NonFiniteError: one of them holds NaN or infinity.

    """
    shown = {name: model.found[name] for name in names if model.found[name].node.graph is model.graph.graph}
    values = {name: (own.data.name or "", own.result.name or "") for name, own in shown.items()}
    wanted = dict.fromkeys((value for pair in values.values() for value in pair), "extremes")
    seen = gather(model, wanted, batches, lambda _, numbers: numbers.reshape(-1, 1)) if wanted else {}
    return {
        name: (_largest(name, "input", seen[given]), _largest(name, "output", seen[made]))
        for name, (given, made) in values.items()
    }


def value_extremes(model: OnnxModel, batches: Sequence[Any]) -> dict[str, tuple[float, float]]:
    """Return the least and the largest finite number of each value of the main graph while `batches` run."""
    graph = model.graph.graph
    values = [value for value in graph.inputs if value.name not in graph.initializers]
    values += [value for node in graph if not _makes_lists(node) for value in node.outputs if value.name]
    wanted = {str(value.name): "extremes" for value in values if value.dtype in (None, ir.DataType.FLOAT)}
    found = gather(model, wanted, batches, lambda _, numbers: _finite(numbers)) if wanted else {}
    return {name: (float(own.low[0]), float(own.high[0])) for name, own in found.items() if own.count}


def _finite(numbers: Numbers) -> Numbers:
    numbers = numbers.reshape(-1, 1).astype(np.float32, copy=False)
    # Infinity masks attention in many a graph, and 16 bits hold it.
    return np.where(np.isfinite(numbers), numbers, 0)


def _makes_lists(node: ir.Node) -> bool:
    """Whether what a node makes may be no array."""
    return "Sequence" in node.op_type or "Optional" in node.op_type or node.op_type in ("If", "Loop", "Scan")


def _largest(name: str, what: str, extremes: Any) -> float:
    try:
        low, high = extremes.result()
    except NonFiniteError as error:
        raise NonFiniteError(f"{name}: its {what} holds NaN or infinity before quantization; look upstream") from error
    return max(-float(low[0]), float(high[0])) if extremes.count else 0.0
