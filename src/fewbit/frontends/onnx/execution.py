"""What a quantized layer of an ONNX model runs on: told before the layer is made."""

from __future__ import annotations

from fewbit.interfaces import Execution, Layer

_WHY = "what computes with fewer bits is the file that is saved, as its runtime fuses it"


def execution(layer: Layer) -> Execution:
    """Return how `layer` runs while its model is in memory: by float operators that give what its codes stand for."""
    if layer.kind == "embedding":
        return Execution(kernel="rows, dequantized", fast=True)  # nothing is multiplied
    return Execution(kernel="onnxruntime, simulated in float", fast=False, why=(_WHY,))
