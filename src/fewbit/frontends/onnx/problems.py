"""What keeps a layer of a graph from getting what a recipe asks for it, known before any work."""

from __future__ import annotations

from collections.abc import Sequence

from fewbit.catalogue import lookup
from fewbit.frontends.onnx.rounding import rounding_problem
from fewbit.interfaces import QuantizedLayer
from fewbit.onnx_graph.live import OnnxModel
from fewbit.statistics import STATISTICS

_INSIDE = (
    "it is inside of a branch or a loop, whose values onnxruntime does not show; keep it, or use dynamic ranges and "
    "rounding to nearest"
)


def problem(model: OnnxModel, quantized: QuantizedLayer, statistics: Sequence[str]) -> str | None:
    """Return why `quantized` cannot be had where `statistics` of its input are needed, with the remedy."""
    own = model.found[quantized.layer.name]
    output = quantized.output
    measured = [name for name in statistics if _measurable(quantized, name)]
    if own.node.graph is not model.graph.graph and (measured or (output is not None and output.static)):
        return _INSIDE
    found = [rounding_problem(scheme) for scheme in (quantized.input, output) if scheme is not None]
    return next((text for text in found if text), None)


def _measurable(quantized: QuantizedLayer, name: str) -> bool:
    return quantized.layer.multiplies_rows or not lookup(STATISTICS, name, what="statistic").of_rows
