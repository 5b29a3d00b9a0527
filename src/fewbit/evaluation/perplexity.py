"""Perplexity: exp of the mean negative log-likelihood of each next token, natural logarithm."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def negative_log_likelihood(log_probabilities: Tensor, tokens: Tensor) -> float:
    """Return the summed negative log-likelihood in nats.

    Args:
        log_probabilities: (positions, vocabulary), of the token that follows each position.
        tokens: (positions,), the tokens that did follow.

    """
    return -float(log_probabilities.gather(-1, tokens[:, None]).double().sum())
