"""`scaled_dot_product_attention` as its two products, in float32: softmax(Q K^T scale + mask) V.

Source: the equivalent code in the documentation of torch.nn.functional.scaled_dot_product_attention. A query that may
look at no key gets 0, as from torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.frontends.torch.attention_product import AttentionProduct, probabilities_value, query_key
from fewbit.frontends.torch.matrix_product import MatrixProduct, Operand


@dataclass(frozen=True, slots=True)
class ScaledDotProduct:
    """A call of torch's function, with its arguments in their order."""

    #: (..., heads, L, E)
    query: Tensor
    #: (..., heads, S, E)
    key: Tensor
    #: (..., heads, S, Ev)
    value: Tensor
    #: True where a query may look, or what is added to the scores.
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    #: `None`: 1 / sqrt(E)
    scale: float | None = None
    #: Neighbouring queries share a key and a value.
    enable_gqa: bool = False

    def computed(self, take: Callable[[AttentionProduct], Tensor]) -> Tensor:
        """Return the output (..., heads, L, Ev) in the type of the query; `take` computes both products in float32."""
        key, value = self._shared(self.key), self._shared(self.value)
        scores = take(query_key(_product(self.query, key.transpose(-2, -1))))
        scores = self._masked(scores * (1.0 / math.sqrt(self.query.shape[-1]) if self.scale is None else self.scale))
        nothing_seen = (scores == -math.inf).all(-1, keepdim=True)
        probabilities = scores.softmax(-1).masked_fill(nothing_seen, 0.0)
        if self.dropout_p:
            probabilities = torch.dropout(probabilities, self.dropout_p, train=True)
        return take(probabilities_value(_product(probabilities, value))).to(self.query.dtype)

    def _masked(self, scores: Tensor) -> Tensor:
        if self.is_causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~seen, -math.inf)
        if self.attn_mask is None:
            return scores
        if self.attn_mask.dtype == torch.bool:
            return scores.masked_fill(~self.attn_mask, -math.inf)
        return scores + self.attn_mask.to(torch.float32)

    def _shared(self, states: Tensor) -> Tensor:
        """Return keys or values with as many heads as there are queries."""
        if not self.enable_gqa:
            return states
        return states.repeat_interleave(self.query.shape[-3] // states.shape[-3], dim=-3)


def _product(left: Tensor, right: Tensor) -> MatrixProduct:
    return MatrixProduct(Operand(left, (-1,), (-2,)), Operand(right, (-2,), (-1,)), torch.matmul)
