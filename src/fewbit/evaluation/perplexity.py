"""Perplexity: exp of the mean negative log-likelihood of each next token, natural logarithm."""

from __future__ import annotations

from fewbit.numerics.namespace import Array, array_namespace


def negative_log_likelihood(log_probabilities: Array, tokens: Array) -> float:
    """Return the summed negative log-likelihood in nats.

    Args:
        log_probabilities: (positions, vocabulary), of the token that follows each position.
        tokens: (positions,), the tokens that did follow.

    """
    xp = array_namespace(log_probabilities)
    found = xp.take_along_axis(log_probabilities, xp.astype(tokens, xp.int64)[:, None], axis=-1)
    return -float(xp.sum(found, dtype=xp.float64))
