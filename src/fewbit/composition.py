"""What parts of a recipe make no sense together: transforms with transforms, with corrections, with schemes.

Sentences with the remedy, for the plan; what an algorithm takes no scheme for, each says itself (`Selective`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fewbit.interfaces import QuantizedLayer
from fewbit.recipe import Recipe
from fewbit.transforms import on_links
from fewbit.transforms.scope import LinkTransform, Rounded

_ABSORPTION = "high-bias-absorption"


def composition_problems(recipe: Recipe, quantized: Sequence[QuantizedLayer]) -> list[str]:
    """Return why transforms and corrections of a recipe make no sense for these layers."""
    problems = [*_twice(recipe), *_out_of_order(recipe), *_around_norms(recipe)]
    schemes = {own.layer.name: Rounded(own.scheme, own.input) for own in quantized}
    problems += [problem for own in recipe.transforms if (problem := own.problem(schemes))]
    links = list(dict.fromkeys(own.name for own in on_links(recipe.transforms) if own.verb == "rescaled"))
    if len(links) > 1:
        names = " and ".join(links)
        problems.append(f"{names} rescale the same links, and the last would undo the others; keep one")
    return problems


def _twice(recipe: Recipe) -> list[str]:
    """Return a sentence for each transform or correction that is named more than once."""
    kinds = {"transform": recipe.transforms, "correction": recipe.corrections}
    return [
        f"{kind} {name} is there {count} times, and the last would undo the others or find nothing to do; keep one"
        for kind, parts in kinds.items()
        for name, count in Counter(own.name for own in parts).items()
        if count > 1
    ]


def _out_of_order(recipe: Recipe) -> list[str]:
    """Return a sentence for each transform of the whole model behind one that works block by block."""
    found = []
    for own in recipe.transforms:
        if isinstance(own, LinkTransform):
            continue
        before = recipe.transforms[: recipe.transforms.index(own)]
        first = next((other.name for other in before if isinstance(other, LinkTransform)), None)
        if first is not None:
            found.append(
                f"{own.name} changes the model before any block is rescaled, and here it follows {first}; swap them"
            )
    return found


def _around_norms(recipe: Recipe) -> list[str]:
    """Return a sentence for each part that counts on BatchNorms which others take away, or would have to."""
    names, found = [own.name for own in recipe.transforms], []
    if _ABSORPTION in names and "batchnorm" not in names:
        found.append(f'{_ABSORPTION} goes by the numbers of folded BatchNorms; put "batchnorm" before it')
    behind = names[names.index(_ABSORPTION) + 1 :] if _ABSORPTION in names else []
    found += [
        f"{_ABSORPTION} moves what is left once links are rescaled, and here {own.name} follows it; swap them"
        for own in on_links(recipe.transforms)
        if own.verb == "rescaled" and own.name in behind
    ]
    if "batchnorm" in names and "batchnorm" in [own.name for own in recipe.corrections]:
        found.append(
            "correction batchnorm re-estimates BatchNorms, and transform batchnorm folds them away before; leave out "
            "one, and with folded norms use correction bias"
        )
    return found
