"""A recipe as TOML text, from which `Recipe.from_text` reads the same rules, transforms and corrections."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from typing import Any

from fewbit.algorithms.nearest import Nearest
from fewbit.errors import RecipeError
from fewbit.recipe import Recipe
from fewbit.rule import Rule
from fewbit.schemes.notation import input_scheme_to_text


def recipe_text(recipe: Recipe) -> str:
    r"""Return the recipe in TOML.

    Raises:
        RecipeError: a preset, whose group sizes adapt to the model, which a file has no word for.

    >>> print(recipe_text(Recipe([Rule(r"a\.b", weight="int4 g64")])), end="")
    [[rules]]
    match = 'a\.b'
    weight = "int4 g64"

    """
    if recipe.adapts or recipe.mixture:
        raise RecipeError(f"{recipe.name} is a preset, which adapts to the model; a file has no word for that")
    tables = {"transforms": recipe.transforms, "corrections": recipe.corrections}
    lines = [f"{key} = [{', '.join(map(_entry, own))}]" for key, own in tables.items() if own]
    return "\n\n".join([*(["\n".join(lines)] if lines else []), *(_rule(rule) for rule in recipe.rules)]) + "\n"


def pattern_of(names: Iterable[str]) -> str:
    r"""Return a regular expression that matches exactly `names`, those that differ in one number together.

    >>> pattern_of(["h.0.up", "h.2.up", "head"])
    'h\\.(0|2)\\.up|head'
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for name in names:
        found = re.search(r"(?<![^.])\d+(?=\.|$)", name)
        before, number, behind = (name[: found.start()], found[0], name[found.end() :]) if found else (name, "", "")
        alike.setdefault((before, behind), []).append(number)
    return "|".join(
        re.escape(before) + (own[0] if len(own) == 1 else f"({'|'.join(own)})") + re.escape(behind)
        for (before, behind), own in alike.items()
    )


def _rule(rule: Rule) -> str:
    lines = ["[[rules]]"]
    lines += [f"match = {_text(rule.match)}"] if rule.match is not None else []
    lines += [f"kind = {_text(rule.kind)}"] if rule.kind is not None else []
    lines += [f"weight = {_text(str(rule.weight))}"] if rule.weight is not None else []
    lines += [f"{name} = {_text(input_scheme_to_text(own))}" for name, own in rule.activations.items()]
    lines += [f"bias = {_text(rule.bias)}"] if rule.bias != "float" else []
    lines += [f"algorithm = {_entry(rule.algorithm)}"] if rule.algorithm != Nearest() and not rule.keep else []
    lines += [f"{flag} = true" for flag in ("keep", "optional") if getattr(rule, flag)]
    return "\n".join(lines)


def _entry(part: Any) -> str:
    """Return an algorithm, transform or correction as its name, or as a table with the options that are not usual."""
    options = {}
    for own in fields(part):
        usual = own.default_factory() if own.default_factory is not MISSING else own.default
        if (value := getattr(part, own.name)) != usual:
            options[own.name] = value
    if not options:
        return _text(part.name)
    return f"{{ name = {_text(part.name)}, {', '.join(f'{key} = {_value(own)}' for key, own in options.items())} }}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)


def _text(value: str) -> str:
    """Return a string of TOML, literal where it holds backslashes."""
    if "\\" in value and "'" not in value and value.isprintable():
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False)
