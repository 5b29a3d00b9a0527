"""How far predictions moved: KL(reference || model) = sum p (log p - log q) in nats, and top-1 agreement."""

from __future__ import annotations

from fewbit.numerics.namespace import Array, array_namespace


def kl_divergence(reference: Array, model: Array) -> float:
    """Return the summed KL divergence in nats of `model` from `reference`, log-probabilities (positions, tokens)."""
    xp = array_namespace(reference)
    return float(xp.sum(xp.exp(reference) * (reference - model), dtype=xp.float64))


def top1_agreements(reference: Array, model: Array) -> int:
    """Return at how many positions both put the same token first."""
    xp = array_namespace(reference)
    return int(xp.count_nonzero(xp.argmax(reference, axis=-1) == xp.argmax(model, axis=-1)))
