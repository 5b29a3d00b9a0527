"""A call from Python in words, for whoever wants to repeat it: texts and numbers as they are, data by their size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

#: More of a text than this is not the name of anything.
_LONG = 200


def call_in_words(function: str, *given: Any, **named: Any) -> str:
    """Return the call; arguments that are `None` are left out.

    >>> call_in_words("fewbit.quantize", "smollm2", "w4a16", to=None, calibration=[1, 2])
    "fewbit.quantize('smollm2', 'w4a16', calibration=<2 batches>)"
    """
    words = [in_words(value) for value in given]
    words += [f"{name}={in_words(value)}" for name, value in named.items() if value is not None]
    return f"{function}({', '.join(words)})"


def in_words(value: Any) -> str:
    """Return a value as it would be written, or what it is in angle brackets."""
    if isinstance(value, str | Path):
        text = str(value)
        return repr(text) if len(text) <= _LONG else f"<a text of {len(text):,} characters>"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value)
    if isinstance(value, Sequence):
        return f"<{len(value)} batch{'' if len(value) == 1 else 'es'}>"
    return f"<{type(value).__name__}>"


def _dataclass(value: Any) -> str:
    name = getattr(value, "name", None)
    if isinstance(getattr(value, "rules", None), Sequence):  # a recipe, whose rules the report has
        return f"<recipe {name!r}>"
    parts = [
        f"{own.name}={in_words(held)}"
        for own in fields(value)
        if own.repr and _said(held := getattr(value, own.name)) and held != own.default
    ]
    return f"{type(value).__name__}({', '.join(parts)})"


def _said(value: Any) -> bool:
    """Whether a value is what a person would write, or data; what only shows how far a run is, is neither."""
    plain = isinstance(value, str | Path | bool | int | float | Sequence)
    return plain or isinstance(value, Mapping) or (is_dataclass(value) and bool(fields(value)))
