"""The recipe that options ask for: a preset or file, or one scheme for all linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewbit.errors import RecipeError

if TYPE_CHECKING:
    from fewbit.recipe import Recipe


@dataclass(frozen=True)
class Schemes:
    """What is asked of all linear layers instead of a recipe."""

    weight: str | None = None
    input: str | None = None
    algorithm: str | None = None


def choose_recipe(recipe: str | None, schemes: Schemes, keep: list[str]) -> Recipe:
    """Return the recipe that --recipe or --weight, --input, --algorithm and --keep ask for."""
    import fewbit as fb
    from fewbit.presets import parse_recipe

    if recipe is not None and schemes != Schemes():
        raise RecipeError(
            "--recipe and --weight (or --input, --algorithm) exclude each other; write the scheme into the recipe"
        )
    kept = [fb.keep(pattern) for pattern in keep]
    if schemes.weight is not None:
        rule = fb.Rule(kind="linear", weight=schemes.weight, input=schemes.input, algorithm=schemes.algorithm)
        name = f"{schemes.weight}, input {schemes.input}" if schemes.input else schemes.weight
        return fb.Recipe([*kept, rule], name=name)
    if schemes.algorithm is not None:
        raise RecipeError('--algorithm needs --weight, e.g. --weight "int4 g64"; presets bring their own')
    if schemes.input is not None:
        raise RecipeError('--input needs --weight, e.g. --weight "int8"; presets such as w8a8 bring their own')
    base = parse_recipe(recipe or "w4a16")
    if not kept:
        return base
    return fb.Recipe(
        [*kept, *base.rules], transforms=base.transforms, name=base.name, adapts=base.adapts, mixture=base.mixture
    )


def beside_search(named: Mapping[str, object]) -> Recipe:
    """Return what stands for the recipe until a search has made one.

    Raises:
        RecipeError: an option that names schemes, or takes the place of data, beside a budget.

    """
    for name, value in named.items():
        if value is not None:
            raise RecipeError(f"{name} and a budget (--target-bits, ...) exclude each other: a search makes the recipe")
    return choose_recipe(None, Schemes(), [])
