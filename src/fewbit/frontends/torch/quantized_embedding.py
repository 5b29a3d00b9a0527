"""A quantized embedding: only the rows that are asked for are dequantized."""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.kernels.dequantize import embedding
from fewbit.qtensor import QTensor


class QuantizedEmbedding(QuantizedLayer):
    """`nn.Embedding` with a quantized weight."""

    def __init__(self, qtensor: QTensor, dtype: torch.dtype) -> None:
        super().__init__(qtensor, dtype)
        self.num_embeddings, self.embedding_dim = qtensor.shape

    def compute(self, inputs: Tensor) -> Tensor:
        """Return the rows at `inputs` (...), which are indices, as (..., width)."""
        return embedding(inputs, self.qtensor, self.dtype)
