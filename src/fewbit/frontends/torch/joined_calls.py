"""Several calls of a module as one: their samples stand one after the other, arguments that all share stay as they are.

A module may mix samples, by a range over all of them or by a norm: whoever joins calls compares with runs one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewbit.frontends.torch.calls import Call, same, tensors_in


class _ApartError(Exception):
    """An argument is another one in each call, and does not count samples."""


def joined(calls: Sequence[Call]) -> tuple[Call, list[int]] | None:
    """Return one call for all samples of `calls`, and how many each has; `None` where they do not stand side by side.

    Samples are counted by the first tensor of a call.
    """
    counted = [next(tensors_in([call.args, dict(call.kwargs)]), None) for call in calls]
    samples = [len(tensor) for tensor in counted if tensor is not None and tensor.ndim]
    if len(samples) < len(calls):
        return None
    try:
        args = _joined([call.args for call in calls], samples)
        return Call(args, _joined([dict(call.kwargs) for call in calls], samples)), samples
    except _ApartError:
        return None


def _joined(values: Sequence[Any], samples: Sequence[int]) -> Any:
    first = values[0]
    if any(type(value) is not type(first) for value in values):
        raise _ApartError
    if isinstance(first, Tensor) and _count_samples(values, samples):
        return torch.cat(tuple(values))
    if type(first) is dict and all(list(value) == list(first) for value in values):
        return {key: _joined([value[key] for value in values], samples) for key in first}
    if type(first) in (tuple, list) and all(len(value) == len(first) for value in values):
        return type(first)(_joined(parts, samples) for parts in zip(*values, strict=True))
    if all(same(first, value) for value in values[1:]):
        return first
    raise _ApartError


def _count_samples(tensors: Sequence[Tensor], samples: Sequence[int]) -> bool:
    """Whether the first axis of each tensor is that of its samples, and all else of them fits."""
    first = tensors[0]
    return all(
        own.ndim and len(own) == count and own.shape[1:] == first.shape[1:] and own.dtype == first.dtype
        for own, count in zip(tensors, samples, strict=True)
    )
