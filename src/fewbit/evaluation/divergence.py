"""How far predictions moved: KL(reference || model) = sum p (log p - log q) in nats, and top-1 agreement."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def kl_divergence(reference: Tensor, model: Tensor) -> float:
    """Return the summed KL divergence in nats of `model` from `reference`, log-probabilities (positions, tokens)."""
    return float((reference.exp() * (reference - model)).double().sum())


def top1_agreements(reference: Tensor, model: Tensor) -> int:
    """Return at how many positions both put the same token first."""
    return int((reference.argmax(-1) == model.argmax(-1)).sum())
