"""What an algorithm gives back: the quantized weight, and what a reader of the report should know about it."""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.numerics.namespace import Array, array_namespace, is_torch
from fewbit.qtensor import QTensor


@dataclass(frozen=True, slots=True)
class Solution:
    """A quantized weight and how it came about."""

    #: The weight (out, in).
    qtensor: QTensor
    #: What was added to the diagonal of the second moment, as a share of its mean; `None` where none is used.
    damping: float | None = None
    #: What fell back or was left out; empty when all went as asked.
    remarks: tuple[str, ...] = ()


def in_framework_of(weight: Array, qtensor: QTensor) -> QTensor:
    """Return a QTensor of torch in the framework of `weight`."""
    if is_torch(weight):
        return qtensor
    xp = array_namespace(weight)
    return qtensor.map(lambda array: xp.asarray(array.numpy()))
