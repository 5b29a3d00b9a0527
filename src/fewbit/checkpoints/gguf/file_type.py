"""`general.file_type`: the mixture of types that a file holds, as llama.cpp numbers them (llama_ftype in llama.h)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod

from fewbit.checkpoints.gguf.container import Entry

#: Numbers by the type that most weights have.
_NUMBERS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 11, "Q4_K": 14,
    "Q5_K": 16, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32, "MXFP4": 38, "NVFP4": 39,
}  # fmt: skip
#: The same with more bits for some weights of the blocks, `_M`, where that has a number of its own.
_MIXED = {"Q3_K": 12, "Q4_K": 15, "Q5_K": 17}


def file_type(entries: Sequence[Entry]) -> int:
    """Return the number for a file: that of the type which most numbers in matrices of the blocks have."""
    weights = [own for own in entries if own.name.startswith("blk.") and len(own.shape) > 1] or list(entries)
    counts: Counter[str] = Counter()
    for own in weights:
        counts[own.kind] += prod(own.shape)
    kind = counts.most_common(1)[0][0]
    return _MIXED[kind] if kind in _MIXED and len(counts) > 1 else _NUMBERS[kind]
