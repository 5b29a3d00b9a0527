"""Swap a layer of a live module between its float and its quantized form, at every place where it hangs."""

from __future__ import annotations

from torch import nn

from fewbit.activation import Activation
from fewbit.float_bias import FloatBias
from fewbit.frontends.torch.convolution import Convolution
from fewbit.frontends.torch.mode_forward import guards
from fewbit.frontends.torch.quantized import QuantizedLayer, QuantizedLinear
from fewbit.frontends.torch.quantized_convolution import QuantizedConvolution
from fewbit.frontends.torch.quantized_embedding import QuantizedEmbedding
from fewbit.frontends.torch.rounded_product import hold, let_go
from fewbit.frontends.torch.scaled_embedding import Lookup
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces import Activations, Layer
from fewbit.qtensor import QTensor


class TorchReplacement:
    """A layer in its two forms; the float one is installed at first."""

    def __init__(
        self,
        model: nn.Module,
        layer: Layer,
        qtensor: QTensor,
        activations: Activations,
        bias: IntegerBias | FloatBias | None = None,
    ) -> None:
        self.layer = layer
        self.original = model.get_submodule(layer.name)
        self.quantized = _quantized(self.original, qtensor)
        self.quantized.round_activations(activations)
        if isinstance(bias, FloatBias):
            self.quantized.replace_bias(bias)
        elif bias is not None:
            self.quantized.round_bias(bias)
        self._places = [
            (parent, attribute)
            for parent in model.modules()
            for attribute, child in parent._modules.items()
            if child is self.original
        ]
        #: torch's fused encoder layers read the weights of the layers inside and would not round their inputs.
        self._around = guards(model, [self.original]) if activations != Activations() else []

    @property
    def qtensor(self) -> QTensor:
        """The quantized weight."""
        return self.quantized.qtensor

    @property
    def integer_bias(self) -> IntegerBias | None:
        """Its bias in int32; `None`: it is float, or there is none."""
        return self.quantized.integer_bias

    def fix_output(self, activation: Activation) -> None:
        """Round the output of the quantized form by a range that is known now."""
        self.quantized.fix_output(activation)

    def install(self) -> None:
        """Put the quantized form into the model."""
        for parent, attribute in self._places:
            setattr(parent, attribute, self.quantized)
        hold(self._around, self.layer.name)

    def restore(self) -> None:
        """Put the float form back."""
        for parent, attribute in self._places:
            setattr(parent, attribute, self.original)
        let_go(self._around, self.layer.name)


def _quantized(module: nn.Module, qtensor: QTensor) -> QuantizedLayer:
    dtype = module.weight.dtype
    form: QuantizedLayer
    if convolution := Convolution.of(module):
        form = QuantizedConvolution(qtensor, convolution, module.bias, dtype)  # type: ignore[arg-type]
    elif lookup := Lookup.of(module):
        form = QuantizedEmbedding(qtensor, dtype, lookup.factor)  # type: ignore[arg-type]
    else:
        form = QuantizedLinear(qtensor, module.bias, dtype)  # type: ignore[arg-type]
    form.train(module.training)
    return form
