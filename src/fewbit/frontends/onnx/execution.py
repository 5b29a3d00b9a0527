"""What a quantized layer of an ONNX model runs on: told before the layer is made."""

from __future__ import annotations

from fewbit.interfaces import Execution, Layer

_SIMULATED = "simulated in float; the file that is saved runs as its runtime fuses it"


def execution(layer: Layer) -> Execution:
    """Return how `layer` runs while its model is in memory; what is written says what a file runs on."""
    # Nothing is slow here for lack of a kernel, so there is nothing to hint at.
    return Execution(kernel="rows, dequantized" if layer.kind == "embedding" else _SIMULATED, fast=True)
