"""Calls of blocks whose tensors lie in files: a table says what a call is made of, and each tensor is read for its run.

{"tensor": n} is the n-th array of a file; what is no tensor stands in the table itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from fewbit.errors import NotYetError
from fewbit.frontends.torch.calls import Call, Slot
from fewbit.frontends.torch.stored import sharing
from fewbit.raw_arrays import RawArrays

_PLAIN = (bool, int, float, str)


@dataclass(frozen=True, slots=True)
class StoredCall:
    """A call that is read anew for each run; a `Call` for those who run or copy it."""

    #: What `to_table` made of positional and of named arguments.
    table: Any
    arrays: RawArrays
    #: Arguments that are other tensors: by position or name which array of `states` each is.
    replaced: Mapping[Slot, int]
    states: RawArrays

    def copy(self) -> Call:
        """Return the call on tensors of its own."""
        args, kwargs = of_table(self.table, lambda number: sharing(self.arrays[number]))
        states = {slot: sharing(self.states[number]) for slot, number in self.replaced.items()}
        return Call(args, kwargs).replaced(states)

    def run(self, module: nn.Module) -> Any:
        """Return the output of `module` for this call."""
        return self.copy().run(module)


def as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return the numbers of a tensor as they are."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_table(value: Any, add: Callable[[np.ndarray[Any, Any]], int]) -> Any:
    """Return a value as JSON, its tensors by the numbers that `add` gives them.

    Raises:
        NotYetError: an object that has no place in JSON.

    """
    if isinstance(value, Tensor):
        return {"tensor": add(as_array(value))}
    if value is None or isinstance(value, _PLAIN):
        return {"value": value}
    if type(value) in (tuple, list):
        return {type(value).__name__: [to_table(own, add) for own in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: to_table(own, add) for key, own in value.items()}}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    raise NotYetError(
        f"a block is called with a {type(value).__name__}, which the journal of a streamed run has no place for; "
        "quantize this model in memory, without --memory and --resume"
    )


def of_table(table: Any, read: Callable[[int], Tensor]) -> Any:
    """Return the value that `to_table` made `table` of."""
    ((kind, own),) = table.items()
    if kind == "tensor":
        return read(own)
    if kind in ("tuple", "list"):
        parts = [of_table(part, read) for part in own]
        return tuple(parts) if kind == "tuple" else parts
    if kind == "dict":
        return {key: of_table(part, read) for key, part in own.items()}
    return getattr(torch, own) if kind == "dtype" else own
