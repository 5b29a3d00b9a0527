"""The quantized layers of a block while it runs for every batch: W' = dequantize(q) is computed once, and kept."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fewbit.frontends.torch.quantized import QuantizedLayer


class HeldWeights:
    """The quantized layers of a block dequantized once, while it runs for every batch."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        """Prepare; `block` gives the block as it then is."""
        self._block = block
        self._layers: list[QuantizedLayer] = []

    def renew(self) -> None:
        """Hold what has been quantized since."""
        new = [
            part for part in self._block().modules() if isinstance(part, QuantizedLayer) and part not in self._layers
        ]
        for layer in new:
            layer.hold()
        self._layers += new

    def __enter__(self) -> HeldWeights:
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self._layers:
            layer.release()
