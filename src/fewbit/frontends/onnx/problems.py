"""What keeps a graph from getting what a recipe asks for, known before any work."""

from __future__ import annotations

from collections.abc import Sequence

from fewbit.catalogue import lookup
from fewbit.frontends.onnx.rounding import rounding_problem
from fewbit.interfaces import QuantizedLayer
from fewbit.onnx_graph.live import OnnxModel
from fewbit.problems import several
from fewbit.statistics import GUIDED, PAIRED, STATISTICS

_PAIRED = (
    "onnxruntime runs the quantized graph alone, without the float one beside it; leave out `asymmetric`, or quantize "
    "the PyTorch module"
)
_GUIDED = "onnxruntime computes no gradients; leave out `guided`, or quantize the PyTorch module"
_INSIDE = (
    "it is inside of a branch or a loop, whose values onnxruntime does not show; keep it, or use dynamic ranges and "
    "rounding to nearest"
)


def problems(model: OnnxModel, wanted: Sequence[tuple[QuantizedLayer, Sequence[str]]]) -> list[str]:
    """Return a sentence for each thing that cannot be had; layers come with the statistics asked of their inputs."""
    alike: dict[str, list[str]] = {}
    for quantized, statistics in wanted:
        text = _problem(model, quantized, statistics)
        if text:
            alike.setdefault(text, []).append(quantized.layer.name)
    return [f"{several(names)}: {text}" for text, names in alike.items()]


def _problem(model: OnnxModel, quantized: QuantizedLayer, statistics: Sequence[str]) -> str | None:
    own = model.found[quantized.layer.name]
    output = quantized.output
    measured = [name for name in statistics if _measurable(quantized, name)]
    if own.node.graph is not model.graph.graph and (measured or (output is not None and output.static)):
        return _INSIDE
    if set(PAIRED) & set(statistics):
        return _PAIRED
    if set(GUIDED) & set(statistics):
        return _GUIDED
    found = [rounding_problem(scheme) for scheme in (quantized.input, output) if scheme is not None]
    return next((text for text in found if text), None)


def _measurable(quantized: QuantizedLayer, name: str) -> bool:
    return quantized.layer.multiplies_rows or not lookup(STATISTICS, name, what="statistic").of_rows
