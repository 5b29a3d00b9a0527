"""Values as they go between processes: the tensors of torch in them on the device that is there."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from fewbit.numerics.namespace import is_torch


def carried(value: Any, device: str) -> Any:
    """Return `value` with every tensor of torch in it on `device`; the same object where all are there already.

    It goes through dataclasses, mappings, tuples and lists; arrays of other frameworks stay where they are.
    """
    if is_torch(value):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        moved = {field.name: carried(getattr(value, field.name), device) for field in fields(value)}
        if all(own is getattr(value, name) for name, own in moved.items()):
            return value
        found = copy.copy(value)
        for name, own in moved.items():
            object.__setattr__(found, name, own)
        return found
    if isinstance(value, Mapping):
        table = {key: carried(own, device) for key, own in value.items()}
        return value if all(own is value[key] for key, own in table.items()) else table
    if type(value) not in (tuple, list):
        return value
    items = [carried(own, device) for own in value]
    return value if all(map(_same, items, value)) else type(value)(items)


def _same(one: Any, other: Any) -> bool:
    return one is other
