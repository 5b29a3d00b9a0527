"""What attention puts out for each patch of an image, O = P V of all heads side by side, in the order of the calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt

from torch import Tensor, nn

from fewbit.frontends.torch.attention_product import AttentionProduct
from fewbit.frontends.torch.product_mode import ProductMode

#: Tokens in front of the patches, at most: of the class, of a teacher, registers.
_OTHERS = 5


class AttentionOutputs:
    """Listens to the products of attention while a module runs."""

    def __init__(self, samples: int) -> None:
        """Listen to runs on so many `samples` at once."""
        self._samples = samples
        #: (samples or windows, patches, numbers), float32.
        self.seen: list[Tensor] = []

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """Listen to `model` while the block runs; what was seen before is forgotten."""
        self.seen.clear()
        with ProductMode(model, {"probabilities_value": self._take}):
            yield

    def _take(self, product: AttentionProduct) -> Tensor:
        output = product.plain()
        tokens = self._tokens(output)
        if tokens is not None:
            self.seen.append(tokens)
        return output

    def _tokens(self, output: Tensor) -> Tensor | None:
        """Return (samples, patches, numbers) of the product (samples, heads, tokens, numbers), heads side by side."""
        if output.ndim == 3 and output.shape[0] % self._samples == 0:
            output = output.reshape(self._samples, -1, *output.shape[1:])
        if output.ndim != 4 or output.shape[2] < 2:
            return None
        count = output.shape[2]
        others = count - isqrt(count) ** 2
        patches = output[:, :, others if others <= _OTHERS else 0 :]
        return patches.transpose(1, 2).flatten(2) if patches.shape[2] > 2 else None
