"""A quantized convolution: on a kernel for codes where there is one, else the float one on rounded numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from fewbit.frontends.torch.convolution import LAST, Convolution, is_channels_last
from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.kernels.dequantize import wants_gradient
from fewbit.kernels.half_precision import convolution_refusal, native, product
from fewbit.kernels.window import Window
from fewbit.qtensor import QTensor

#: Shapes of inputs for which a window is remembered.
_SHAPES = 64


class QuantizedConvolution(QuantizedLayer):
    """A convolution with a quantized weight."""

    def __init__(
        self, qtensor: QTensor, convolution: Convolution, bias: nn.Parameter | None, dtype: torch.dtype
    ) -> None:
        super().__init__(qtensor, dtype)
        self.convolution = convolution
        self._parameters["bias"] = bias  # `register_parameter` refuses the name of a property
        #: How inputs are read, by their shape and the mode of the module; one entry unless a forward of its own runs.
        self._windows: dict[tuple[tuple[int, ...], bool], Window] = {}

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:  # noqa: A002  # as torch's own layers
        """Return the output for `input ([samples,] channels, *spatial)`, both rounded where that is asked for."""
        output = self._in_sixteen_bits(input, output_size) if self._held is None else None
        if output is None:
            output = self._on_codes(input) if self._held is None else None
        if output is None:
            return super().forward(input, *([] if output_size is None else [output_size]))
        return output if self.output is None else self.output(output)

    def _in_sixteen_bits(self, inputs: Tensor, output_size: Any) -> Tensor | None:
        """Return the convolution of casts; `None`: the products are not those of the cast.

        The forward of a subclass may do anything in between.
        """
        if self.scheme.scaled or self.convolution.own is not None:
            return None
        if convolution_refusal(self.request(inputs.dtype), self.convolution.depth) is not None:
            return None
        weight = self.convolution.weight(native(self.qtensor))
        output = product(lambda x, w: self.convolution.apply(x, w, None, output_size), inputs, weight)
        return output if self.bias is None else output + self.bias.reshape(-1, *(1 for _ in range(self.spatial)))

    def _on_codes(self, inputs: Tensor) -> Tensor | None:
        """Return the convolution by a kernel for codes; `None`: none takes it, or not these inputs."""
        if self.input is None or not self.scheme.scaled or not inputs.numel():
            return None
        kernel, prepared, rounded = self.kernel(inputs.dtype, self.window(tuple(inputs.shape)))
        bias = self.bias if rounded is None else rounded
        if kernel.purpose is None or wants_gradient(inputs, bias):
            return None
        return kernel.apply(inputs, prepared, bias, self.input.activation)

    def window(self, shape: tuple[int, ...]) -> Window:
        """Return how inputs of `shape` are read."""
        key = (shape, self.training) if self.convolution.own is not None else ((), False)
        if key not in self._windows:
            found = self.convolution.window(shape, biased=self.bias is not None, training=self.training)
            self._windows = {**(self._windows if len(self._windows) < _SHAPES else {}), key: found}
        return self._windows[key]

    def arranged(self, weight: Tensor) -> Tensor:
        """Return a weight (out, in) in the shape of the float module's."""
        return self.convolution.weight(weight)

    @property
    def spatial(self) -> int:
        """How many axes follow that of the channels."""
        return len(self.convolution.kernel)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # `to(memory_format=...)` converts what has the axes of images, which no buffer here has.
        if self.spatial in LAST:
            probe = torch.empty((2,) * (2 + self.spatial), dtype=self.dtype)
            probe = probe.to(memory_format=LAST[self.spatial]) if self.convolution.last_in_memory else probe
            self.convolution = replace(self.convolution, last_in_memory=is_channels_last(fn(probe)))
        self._windows = {}
        return self

    def compute(self, inputs: Tensor, output_size: Any = None) -> Tensor:
        """Return what the float convolution would with the dequantized weight."""
        weight = self._held if self._held is not None else self.weight
        return self.convolution.in_mode(self.training).apply(inputs, weight.to(inputs.dtype), self.bias, output_size)
