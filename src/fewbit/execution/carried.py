"""Values as they go between processes and devices: the tensors of torch in them as bytes of NumPy, or on a device.

Ray hands arrays of NumPy over in shared memory; tensors it would copy several times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from fewbit.numerics.namespace import is_torch


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor as bytes."""

    #: uint8 (bytes,).
    numbers: np.ndarray[Any, np.dtype[np.uint8]]
    #: Name of the type in torch.
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Any) -> Packed:
        """Return the bytes of a tensor on any device."""
        import torch

        own = tensor.detach().to("cpu").contiguous()
        numbers = own.reshape(-1).view(torch.uint8).numpy()
        return cls(numbers, str(own.dtype).removeprefix("torch."), tuple(own.shape))

    def tensor(self, device: str) -> Any:
        """Return the tensor on `device`, in memory of its own."""
        import torch

        found = torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        found.reshape(-1).view(torch.uint8).numpy()[:] = self.numbers
        return found.to(device)


def packed(value: Any) -> Any:
    """Return `value` with every tensor of torch in it as bytes."""
    return _mapped(value, lambda own: Packed.of(own) if is_torch(own) else own)


def unpacked(value: Any, device: str = "cpu") -> Any:
    """Return `value` with its tensors on `device` again; arrays of NumPy may be written into again, too."""
    return _mapped(value, lambda own: _restored(own, device))


def carried(value: Any, device: str) -> Any:
    """Return `value` with every tensor of torch in it on `device`; the same object where all are there already."""
    return _mapped(value, lambda own: own.to(device) if is_torch(own) else own)


def _restored(value: Any, device: str) -> Any:
    if isinstance(value, Packed):
        return value.tensor(device)
    return value.copy() if isinstance(value, np.ndarray) else value


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return `value` with `function` of what is in dataclasses, mappings, tuples and lists."""
    found = function(value)
    if found is not value:
        return found
    if is_dataclass(value) and not isinstance(value, type):
        moved = {field.name: _mapped(getattr(value, field.name), function) for field in fields(value)}
        if all(own is getattr(value, name) for name, own in moved.items()):
            return value
        found = copy.copy(value)
        for name, own in moved.items():
            object.__setattr__(found, name, own)
        return found
    if isinstance(value, Mapping):
        table = {key: _mapped(own, function) for key, own in value.items()}
        return value if all(own is value[key] for key, own in table.items()) else table
    if type(value) not in (tuple, list):
        return value
    items = [_mapped(own, function) for own in value]
    return value if all(map(_same, items, value)) else type(value)(items)


def _same(one: Any, other: Any) -> bool:
    return one is other
