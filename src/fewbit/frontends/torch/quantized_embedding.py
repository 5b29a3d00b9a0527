"""A quantized embedding: only the rows that are asked for are dequantized."""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.frontends.torch.scaled_embedding import scaled
from fewbit.kernels.dequantize import embedding
from fewbit.qtensor import QTensor


class QuantizedEmbedding(QuantizedLayer):
    """`nn.Embedding` with a quantized weight, and the number that the float one multiplied its rows by, if any."""

    factor: Tensor | None

    def __init__(self, qtensor: QTensor, dtype: torch.dtype, factor: Tensor | float | None = None) -> None:
        super().__init__(qtensor, dtype)
        # In the type of the float module's own, which `half()` rounds as it would there.
        own = None if factor is None else torch.as_tensor(factor, device=qtensor.codes.device)
        self.register_buffer("factor", own, persistent=False)
        self.num_embeddings, self.embedding_dim = qtensor.shape

    def compute(self, inputs: Tensor) -> Tensor:
        """Return the rows at `inputs` (...), which are indices, as (..., width)."""
        return scaled(embedding(inputs, self.qtensor, self.dtype), self.factor)
