"""Recipes: rules in order, of which the first that matches a layer wins; transforms and corrections.

Recipes are Python values or TOML; strings in them are parsed once, and only values live inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fewbit.catalogue import unknown
from fewbit.corrections import AnyCorrection, parse_correction
from fewbit.errors import FewbitError, RecipeError
from fewbit.interfaces import Layer
from fewbit.rule import Rule
from fewbit.toml_table import LARGEST, parse_table
from fewbit.transforms import AnyTransform, parse_transform


@dataclass(frozen=True)
class Recipe:
    """Rules in order.

    >>> from fewbit.rule import keep
    >>> recipe = Recipe([keep(kind="head"), Rule(kind="linear", weight="int8")])
    >>> [str(rule) for rule in recipe.rules][1]
    "kind 'linear': int8 channel by nearest"
    """

    #: The first that matches a layer wins.
    rules: tuple[Rule, ...]
    #: What the user calls it.
    name: str = "custom"
    #: Rewrites of the float model before rounding, in order.
    transforms: tuple[AnyTransform, ...] = ()
    #: Repairs of the layers that are quantized, in order.
    corrections: tuple[AnyCorrection, ...] = ()
    #: Group sizes adapt to the widths of the model, as those of presets do.
    adapts: bool = False
    #: The mixture of GGUF types that stands for the schemes of the rules.
    mixture: str | None = None

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        transforms: Sequence[str | dict[str, Any] | AnyTransform] = (),
        corrections: Sequence[str | dict[str, Any] | AnyCorrection] = (),
        name: str = "custom",
        adapts: bool = False,
        mixture: str | None = None,
    ) -> None:
        for key, (given, what) in {
            "transforms": (transforms, "names or tables"),
            "corrections": (corrections, "names or tables"),
        }.items():
            if not isinstance(given, (list, tuple)):
                raise RecipeError(f"{key} = {given!r:.80} is not a list of {what}")
        if not isinstance(rules, (list, tuple)):
            raise RecipeError(f"a recipe takes a list of rules, not a {type(rules).__name__}; write Recipe([rule])")
        for rule in rules:
            if not isinstance(rule, Rule):
                raise RecipeError(f"a recipe holds rules, not {type(rule).__name__}; use fewbit.Rule or fewbit.keep")
        if not any(not rule.keep for rule in rules):
            raise RecipeError("the recipe quantizes nothing: no rule names a weight scheme; add one")
        values = {
            "rules": tuple(rules),
            "name": name,
            "transforms": tuple(parse_transform(transform) for transform in transforms),
            "corrections": tuple(parse_correction(correction) for correction in corrections),
            "adapts": adapts,
            "mixture": mixture,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @property
    def changes_model(self) -> bool:
        """Whether transforms or corrections run the model."""
        return bool(self.transforms or self.corrections)

    @property
    def names_products(self) -> bool:
        """Whether a rule speaks of products inside attention, so that they have to be found."""
        return any(rule.kind == "attention" for rule in self.rules)

    def winner(self, layer: Layer) -> int | None:
        """Return the place of the first rule that matches `layer`, or `None`."""
        return next((place for place, rule in enumerate(self.rules) if rule.matches(layer)), None)

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe file; see `from_text`."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                content = file.read(LARGEST + 1)
            if len(content) > LARGEST:
                raise RecipeError(f"recipe {path} has more than {LARGEST} bytes; is it the right file?")
            text = content.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read recipe {path}: {error}") from error
        return cls.from_text(text, name=path.name)

    @classmethod
    def from_text(cls, text: str, *, name: str = "custom") -> Recipe:
        r"""Read a recipe in TOML: `[[rules]]` tables with the fields of `Rule`.

        >>> Recipe.from_text('[[rules]]\nkind = "linear"\nweight = "int4 g64"').rules[0].kind
        'linear'

        Raises:
            RecipeError: text that is not TOML, or a key that recipes or rules do not have.

        """
        table = parse_table(text, f"recipe {name}")
        _check_keys(table, ["rules", "transforms", "corrections"], f"recipe {name}")
        rules = table.get("rules", [])
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            raise RecipeError(f"recipe {name}: `rules` must be [[rules]] tables")
        parsed = [_rule_from_table(rule, f"rule {number} of recipe {name}") for number, rule in enumerate(rules, 1)]
        try:
            further = {key: table[key] for key in ("transforms", "corrections") if key in table}
            return cls(parsed, name=name, **further)
        except FewbitError as error:
            error.add_note(f"in recipe {name}")
            raise


def _rule_from_table(table: dict[str, Any], where: str) -> Rule:
    _check_keys(table, [field.name for field in fields(Rule)], where)
    for key in ("keep", "optional"):
        if not isinstance(table.get(key, False), bool):
            raise RecipeError(f"{where}: {key} = {table[key]!r:.80} is not true or false")
    for key in ("weight", "input", "output"):
        if not isinstance(table.get(key, ""), str):
            raise RecipeError(f'{where}: {key} = {table[key]!r:.80} is not text; write {key} = "int8"')
    try:
        return Rule(**table)
    except FewbitError as error:
        error.add_note(f"in {where}")
        raise


def _check_keys(table: dict[str, Any], known: list[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise RecipeError(unknown(key, known, what=f"key in {where}:"))
