"""Catalogues: plain dicts `name -> "module:attribute"`, imported only when a name is asked for.

A new format, algorithm, checkpoint or kernel is one file and one line in the dict of its package.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from fewbit.errors import FewbitError, RecipeError

#: Characters of a name that are repeated in a message.
_LONGEST = 60


def lookup(catalogue: Mapping[str, str], name: str, *, what: str, error: type[FewbitError] = RecipeError) -> Any:
    """Return the object that `catalogue` lists under `name`.

    Raises `error` with the closest known name when there is no such entry.
    """
    if name not in catalogue:
        raise error(unknown(name, catalogue, what=what))
    module, _, attribute = catalogue[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def with_options(factory: Any, options: Mapping[str, Any], what: str) -> Any:
    """Return `factory(**options)` of a dataclass; raises `RecipeError` for an option that it does not have."""
    names = [field.name for field in fields(factory)]
    for option in options:
        if option not in names:
            raise RecipeError(unknown(option, names, what=f"option of {what}:"))
    return factory(**options)


def parse_entry(
    value: Any,
    catalogue: Mapping[str, str],
    *,
    what: str,
    example: str,
    kinds: tuple[Any, ...] = (Callable,),
) -> Any:
    """Return the object of `catalogue` for a name, a table with `name` and options, or an object of `kinds`.

    Raises:
        RecipeError: neither; an unknown name or option.

    """
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        if isinstance(value, type) or not isinstance(value, kinds):
            raise RecipeError(f'{value!r:.80} is no {what}; write for example "{example}"')
        return value
    options = dict(value)
    if "name" not in options:
        raise RecipeError(f'{value!r:.80} without a name is no {what}; write for example {{ name = "{example}" }}')
    name = str(options.pop("name"))
    return with_options(lookup(catalogue, name, what=what), options, f"{what} {name!r}")


def unknown(name: str, known: Iterable[str], *, what: str) -> str:
    """Return the message for a name that is not known: what was meant, perhaps, and what there is.

    >>> unknown("w4a61", ["w4a16", "w8a16"], what="preset")
    "unknown preset 'w4a61'; did you mean 'w4a16'? known: w4a16, w8a16"
    """
    names = sorted(known)
    name = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {name!r}; {hint}known: {', '.join(names) or 'none'}"
