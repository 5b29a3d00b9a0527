"""Token ids against what a model takes: its vocabulary and its context, by its configuration.

An embedding would fail without a word of where, and positions beyond the context give numbers that mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fewbit.errors import CalibrationError


def vocabulary_of(model: Any) -> int | None:
    """Return how many tokens `model` knows, or `None` where its configuration does not say."""
    return getattr(_configuration(model), "vocab_size", None)


def context_of(model: Any) -> int | None:
    """Return how many tokens `model` can look at, or `None` where its configuration does not say."""
    return getattr(_configuration(model), "max_position_embeddings", None)


def writes_text(model: Any) -> bool:
    """Whether `model` is a causal language model of transformers."""
    can = getattr(model, "can_generate", lambda: False)()
    configuration = getattr(model, "config", None)
    encodes = getattr(configuration, "is_encoder_decoder", False)
    return bool(can) and not encodes and vocabulary_of(model) is not None


def require_known(batches: Iterable[Any], model: Any, *, what: str) -> None:
    """Raise `CalibrationError` for a batch that holds token ids which `model` cannot take; `what` names the batches."""
    vocabulary, context = vocabulary_of(model), context_of(model)
    if vocabulary is None:  # batches may be long to read
        return
    for number, batch in enumerate(batches):
        ids: Any = batch.get("input_ids") if isinstance(batch, Mapping) else batch
        if not hasattr(ids, "dtype") or "int" not in str(ids.dtype) or 0 in ids.shape:
            continue
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= vocabulary:
            wrong = least if least < 0 else most
            raise CalibrationError(
                f"{what} batch {number}: token {wrong} is outside the vocabulary of {vocabulary}; "
                "use the model's own tokenizer"
            )
        if context is not None and ids.shape[-1] > context:
            raise CalibrationError(
                f"{what} batch {number}: {ids.shape[-1]} tokens are more than the model's context of {context}; "
                "use shorter sequences"
            )


def _configuration(model: Any) -> Any:
    configuration = getattr(model, "config", None)
    # A model of pictures and text keeps what concerns text one level below.
    return getattr(configuration, "get_text_config", lambda: configuration)()
