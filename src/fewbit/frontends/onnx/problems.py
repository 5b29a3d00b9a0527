"""What keeps a graph from getting what a recipe asks for, known before any work."""

from __future__ import annotations

from collections.abc import Sequence

from fewbit.catalogue import lookup
from fewbit.frontends.onnx.rounding import rounding_problem
from fewbit.frontends.onnx.stored import storage_type_of
from fewbit.interfaces import QuantizedLayer
from fewbit.onnx_graph.live import OnnxModel
from fewbit.problems import several
from fewbit.schemes.scheme import ScaleType
from fewbit.statistics import STATISTICS

_INSIDE = (
    "it is inside of a branch or a loop, whose values onnxruntime does not show; keep it, or use dynamic ranges and "
    "rounding to nearest"
)


def problems(
    model: OnnxModel, wanted: Sequence[tuple[QuantizedLayer, Sequence[str]]], storage_type: ScaleType
) -> list[str]:
    """Return a sentence for each thing that cannot be had; layers come with the statistics asked of their inputs."""
    alike: dict[str, list[str]] = {}
    for quantized, statistics in wanted:
        text = _problem(model, quantized, statistics)
        if text:
            alike.setdefault(text, []).append(quantized.layer.name)
    found = [f"{several(names)}: {text}" for text, names in alike.items()]
    own = storage_type_of(model)
    if storage_type != own:
        found.append(f"dtype {storage_type}: the types of an ONNX model stay as they are, here {own}; leave out dtype")
    return found


def _problem(model: OnnxModel, quantized: QuantizedLayer, statistics: Sequence[str]) -> str | None:
    own = model.found[quantized.layer.name]
    output = quantized.output
    measured = [name for name in statistics if _measurable(quantized, name)]
    if own.node.graph is not model.graph.graph and (measured or (output is not None and output.static)):
        return _INSIDE
    found = [rounding_problem(scheme) for scheme in (quantized.input, output) if scheme is not None]
    return next((text for text in found if text), None)


def _measurable(quantized: QuantizedLayer, name: str) -> bool:
    return quantized.layer.multiplies_rows or not lookup(STATISTICS, name, what="statistic").of_rows
