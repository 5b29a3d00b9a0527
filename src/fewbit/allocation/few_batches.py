"""The first of some data: as much as single layers are measured on, over and over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewbit.numerics.namespace import array_namespace
from fewbit.samples.batches import samples_in

#: Tokens, and samples of other data, that single layers are measured on.
TOKENS, SAMPLES = 256, 64


def few_batches(batches: Sequence[Any], tokens: int = TOKENS, samples: int = SAMPLES) -> tuple[list[Any], str]:
    """Return the first batches, of token ids cut to `tokens` in all, of others `samples` or a few more; and their size.

    A batch with more arguments than token ids is taken as it is.
    """
    taken: list[Any] = []
    left = tokens if _is_text(batches[0]) else samples
    count = 0
    for batch in batches:
        if count >= left:
            break
        own, size = _cut(batch, left - count) if _is_text(batches[0]) else (batch, samples_in(batch))
        taken.append(own)
        count += size
    return taken, f"{count} {'tokens' if _is_text(batches[0]) else 'samples'}"


def _ids(batch: Any) -> Any:
    return batch["input_ids"] if isinstance(batch, Mapping) and "input_ids" in batch else batch


def _is_text(batch: Any) -> bool:
    """Whether a batch is of token ids (sequences, length), perhaps with more beside them."""
    ids = _ids(batch)
    if not hasattr(ids, "dtype") or getattr(ids, "ndim", 0) != 2:
        return False
    return bool(array_namespace(ids).isdtype(ids.dtype, "integral"))


def _cut(batch: Any, left: int) -> tuple[Any, int]:
    ids = _ids(batch)
    rows, length = ids.shape
    if isinstance(batch, Mapping) and len(batch) > 1:
        return batch, rows * length
    rows = max(1, min(rows, left // length)) if length <= left else 1
    own = ids[:rows, : min(length, max(left, 2))]
    return ({"input_ids": own} if isinstance(batch, Mapping) else own), int(own.shape[0] * own.shape[1])
