"""How much of a text that a model is measured on it has been calibrated on: the share of runs of tokens in both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.numerics.namespace import to_numpy

#: Tokens of a run: long enough that two texts of one language rarely share one by chance.
RUN = 8
#: An odd multiplier mixes every token into all bits of a run's number (Knuth's for 64 bits).
_MULTIPLIER = np.uint64(6364136223846793005)

Tokens = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Runs of tokens of the evaluation, and how many of those are in the calibration data, too."""

    tokens: int
    runs: int
    shared: int

    @property
    def share(self) -> float:
        """The part of the evaluation that was seen in calibration."""
        return self.shared / max(self.runs, 1)


def overlap(calibration: Sequence[Any], evaluation: Sequence[Any]) -> Overlap | None:
    """Return how far batches of token ids overlap; `None` where one side holds none, or is too short for a run.

    >>> overlap([np.arange(16)[None]], [np.arange(4, 20)[None]])
    Overlap(tokens=8, runs=9, shared=5)
    """
    asked = _runs(evaluation)
    known = None if asked is None else _runs(calibration)  # samples of another kind are not read for nothing
    if asked is None or known is None:
        return None
    return Overlap(tokens=RUN, runs=len(asked), shared=int(np.isin(asked, known).sum()))


def _runs(batches: Sequence[Any]) -> Tokens | None:
    """Return a number for each run of each sequence."""
    numbers = []
    for sequences in _token_ids(batches):
        length = sequences.shape[1] - RUN + 1
        if length < 1:
            continue
        own = np.zeros((len(sequences), length), np.uint64)
        for offset in range(RUN):
            own = (own + sequences[:, offset : offset + length] + np.uint64(1)) * _MULTIPLIER
        numbers.append(own.ravel())
    return np.concatenate(numbers) if numbers else None


def _token_ids(batches: Sequence[Any]) -> Iterator[Tokens]:
    for batch in batches:
        ids: Any = batch.get("input_ids") if isinstance(batch, Mapping) else batch
        if not hasattr(ids, "dtype") or "int" not in str(ids.dtype) or len(ids.shape) != 2:
            return  # no token ids: neither are the others
        yield to_numpy(ids).astype(np.uint64)
