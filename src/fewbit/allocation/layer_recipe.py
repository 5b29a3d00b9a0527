"""The recipe of a selection: a rule for each scheme and algorithm, with the layers that it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fewbit.allocation.candidates import FLOAT
from fewbit.allocation.selection import Selection
from fewbit.allocation.units import Setting, Unit
from fewbit.recipe import Recipe
from fewbit.recipe_text import pattern_of
from fewbit.rule import Rule, keep


def recipe_of(units: Sequence[Unit], selection: Selection, setting: Setting, name: str) -> Recipe:
    """Return the recipe that gives every layer of `units` what was selected for it."""
    alike: dict[Rule, list[str]] = {}
    floats: list[str] = []
    for unit, place in zip(units, selection.choices, strict=True):
        chosen = unit.choices[place].name
        for layer in unit.layers:
            if chosen == FLOAT:
                floats.append(layer.name)
            else:
                alike.setdefault(setting.candidates.rule(chosen, layer, "any"), []).append(layer.name)
    rules = [keep(pattern) for pattern in setting.keep]
    rules += [keep(pattern_of(floats))] if floats else []
    # `replace` of a rule parses its fields anew, which they stand.
    rules += [replace(rule, match=pattern_of(names)) for rule, names in alike.items()]
    rules.append(keep(kind="router", optional=True))
    return Recipe(rules, name=name)
