"""Values as strict JSON: lists for tuples, objects for dataclasses, words for numbers that are not finite.

A field with the metadata `listed` is written once for all who have the same value, under its own name at the top; its
place there stands for it.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, is_dataclass
from typing import Any


def plain(value: Any) -> Any:
    """Return `value` fit for strict JSON: lists for tuples, strings for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if {*map(type, value)} <= {int, float} and math.isfinite(sum(value)):
            return list(value)  # as it is: histograms are long
        return [plain(item) for item in value]
    if is_dataclass(value):
        return {own.name: plain(getattr(value, own.name)) for own in fields(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def listed(value: Any) -> dict[str, Any]:
    """Return a dataclass as `plain` does, and beside its fields a list for each name of listed ones."""
    lists: dict[str, list[Any]] = {}
    data = _listed(value, lists)
    return {**data, **lists}


def _listed(value: Any, lists: dict[str, list[Any]]) -> Any:
    if isinstance(value, (list, tuple)) and value and is_dataclass(value[0]):
        return [_listed(item, lists) for item in value]
    if not is_dataclass(value):
        return plain(value)
    found = {}
    for own in fields(value):
        found[own.name] = _listed(getattr(value, own.name), lists)
        if own.metadata.get("listed"):
            known = lists.setdefault(own.name, [])
            if found[own.name] not in known:
                known.append(found[own.name])
            found[own.name] = known.index(found[own.name])
    return found


def json_text(data: dict[str, Any]) -> str:
    """Return strict JSON for people: indented, but lists of numbers on one line.

    >>> json_text({"shape": (8, 64), "sqnr": float("inf")}).splitlines()
    ['{', '  "shape": [8, 64],', '  "sqnr": "inf"', '}']
    """
    text = json.dumps(plain(data), indent=2, allow_nan=False)
    # No string of JSON holds a line break, so that this finds lists only.
    return re.sub(r"\[\n\s+(-?\d[^\[\]{}\"]*?)\n\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
