"""Quality of a language model on token sequences, alone or beside its reference; streams over positions.

Every sequence of n tokens gives n - 1 predictions, each from the tokens before it in the same sequence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fewbit.errors import NonFiniteError, SourceError
from fewbit.evaluation.divergence import kl_divergence, top1_agreements
from fewbit.evaluation.perplexity import negative_log_likelihood
from fewbit.numerics.namespace import Array, array_namespace, is_torch

#: Positions whose probabilities are in memory at once: 128 x 49152 float32 numbers are 25 MB.
_POSITIONS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What a language model scores on a text."""

    #: Predictions that were scored.
    predictions: int
    #: exp of the mean negative log-likelihood.
    perplexity: float
    #: Mean KL divergence from the reference in nats; `None` without a reference.
    kl_divergence: float | None = None
    #: Share of predictions whose first token is the reference's; `None` without a reference.
    top1_agreement: float | None = None
    #: Wall-clock seconds of the model's own forwards.
    seconds: float = 0.0


@dataclass(slots=True)
class _Sums:
    likelihood: float = 0.0
    divergence: float = 0.0
    agreements: int = 0
    seconds: float = 0.0


Logits = Callable[[Array], Array]


def compare(reference: Logits, model: Logits | None, batches: Iterable[Array]) -> tuple[Quality, Quality | None]:
    """Score `reference` and, beside it, `model` on `batches` of token ids (sequences, length).

    Both are callables from token ids to logits (sequences, length, vocabulary); memory holds one batch of each.
    Returns the quality of both, the second `None` without a `model`.

    Raises:
        SourceError: no batch, or sequences too short to predict anything.
        NonFiniteError: logits that are NaN or infinite.

    """
    sums = (_Sums(), _Sums())
    predictions = 0
    for tokens in batches:
        if tokens.shape[-1] < 2:
            raise SourceError(f"sequences of {tokens.shape[-1]} token predict nothing; use at least 2")
        expected = _timed(reference, tokens, sums[0], "the reference")
        actual = _timed(model, tokens, sums[1], "the quantized model") if model else expected
        predictions += tokens.shape[0] * (tokens.shape[1] - 1)
        for sequence in range(tokens.shape[0]):
            compared = actual[sequence, :-1] if model else None
            _score(expected[sequence, :-1], compared, tokens[sequence, 1:], sums)
    if not predictions:
        raise SourceError("no tokens to evaluate on; give a longer text")
    before = Quality(
        predictions=predictions,
        perplexity=_perplexity(sums[0], predictions),
        seconds=sums[0].seconds,
    )
    if model is None:
        return before, None
    return before, Quality(
        predictions=predictions,
        perplexity=_perplexity(sums[1], predictions),
        kl_divergence=sums[1].divergence / predictions,
        top1_agreement=sums[1].agreements / predictions,
        seconds=sums[1].seconds,
    )


def _perplexity(sums: _Sums, predictions: int) -> float:
    try:
        return math.exp(sums.likelihood / predictions)
    except OverflowError:  # more than 709 nats a token
        return math.inf


def _timed(forward: Logits, tokens: Array, sums: _Sums, who: str) -> Array:
    started = time.perf_counter()
    logits = forward(tokens)
    if is_torch(logits) and logits.is_cuda:
        logits.sum().item()  # waits until the device is done
    sums.seconds += time.perf_counter() - started
    xp = array_namespace(logits)
    if not bool(xp.all(xp.isfinite(logits))):
        raise NonFiniteError(f"the logits of {who} hold NaN or infinity; `fewbit inspect` shows whether a weight does")
    return logits


def _score(expected: Array, actual: Array | None, tokens: Array, sums: tuple[_Sums, _Sums]) -> None:
    for start in range(0, len(tokens), _POSITIONS):
        piece = slice(start, start + _POSITIONS)
        p = log_probabilities(expected[piece])
        sums[0].likelihood += negative_log_likelihood(p, tokens[piece])
        if actual is not None:
            q = log_probabilities(actual[piece])
            sums[1].likelihood += negative_log_likelihood(q, tokens[piece])
            sums[1].divergence += kl_divergence(p, q)
            sums[1].agreements += top1_agreements(p, q)


def log_probabilities(logits: Array) -> Array:
    """Return the logarithm of softmax over the last axis, float32."""
    if is_torch(logits):
        return logits.float().log_softmax(-1)
    xp = array_namespace(logits)
    values = xp.astype(logits, xp.float32)
    values = values - xp.max(values, axis=-1, keepdims=True)
    return values - xp.log(xp.sum(xp.exp(values), axis=-1, keepdims=True))
