"""Swap a layer of a live ONNX model between its float and its quantized form; its graph stays as it is."""

from __future__ import annotations

from dataclasses import replace

from fewbit.activation import Activation
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces import Layer
from fewbit.onnx_graph.live import OnnxModel, Rounded
from fewbit.qtensor import QTensor


class OnnxReplacement:
    """A layer in its two forms; the float one is installed at first."""

    def __init__(self, model: OnnxModel, layer: Layer, rounded: Rounded) -> None:
        self.model, self.layer, self.rounded = model, layer, rounded

    @property
    def qtensor(self) -> QTensor:
        """The quantized weight."""
        return self.rounded.qtensor

    @property
    def integer_bias(self) -> IntegerBias | None:
        """Its bias in int32; `None`: it is float, or there is none."""
        return self.rounded.bias if isinstance(self.rounded.bias, IntegerBias) else None

    def fix_output(self, activation: Activation) -> None:
        """Round the output of the quantized form by a range that is known now."""
        installed = self.model.layers.get(self.layer.name) is self.rounded
        self.rounded = replace(self.rounded, activations=replace(self.rounded.activations, output=activation))
        if installed:
            self.install()

    def install(self) -> None:
        """Put the quantized form into the model."""
        self.model.layers[self.layer.name] = self.rounded

    def restore(self) -> None:
        """Put the float form back."""
        self.model.layers.pop(self.layer.name, None)
