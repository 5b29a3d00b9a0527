"""What recipes may ask for of modules and graphs, and JAX functions do not have in this version; imports no JAX."""

from __future__ import annotations

from fewbit.algorithms import unpaired
from fewbit.algorithms.block import BlockAlgorithm
from fewbit.recipe import Recipe
from fewbit.rule import Rule
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.statistics import GUIDED, PAIRED
from fewbit.transforms import AnyTransform

#: Transforms that move numbers between parameters and add none.
_ON_LINKS = ("awq", "equalization", "smoothquant")


def missing_here(recipe: Recipe) -> list[str]:
    """Return what a recipe asks for that JAX functions do not have.

    A preset loses what it can do without: the folding of norms, and the gradients that guide GPTQ.
    """
    missing = [f"transform {own.name}" for own in recipe.transforms if not _transforms(own, recipe)]
    missing += [f"correction {own.name}" for own in recipe.corrections]
    missing += [f"GGUF mixture {recipe.mixture}"] if recipe.mixture else []
    for rule in recipe.rules:
        if not rule.keep:
            missing += _of_rule(rule, guided=recipe.adapts)
    return missing


def _transforms(transform: AnyTransform, recipe: Recipe) -> bool:
    """Whether functions have a transform, or a preset does without it."""
    if transform.name == "batchnorm":
        return recipe.adapts
    return transform.name in _ON_LINKS and not getattr(transform, "first", ())


def _of_rule(rule: Rule, *, guided: bool) -> list[str]:
    """Return the same of a rule; `guided` says whether algorithms do without gradients where they asked for them."""
    missing = ["products inside attention"] if rule.kind == "attention" else []
    missing += [f"output {input_scheme_to_text(rule.output)}"] if rule.output else []
    missing += [f"bias {rule.bias}"] if rule.bias != "float" else []
    asked = set(unpaired(rule.algorithm).statistics)
    if isinstance(rule.algorithm, BlockAlgorithm):
        missing.append(f"algorithm {rule.algorithm.name}")
    if asked & set(PAIRED):
        missing.append(f"{rule.algorithm.name} for inputs that have drifted")
    if asked & set(GUIDED) and not guided:
        missing.append(f"{rule.algorithm.name} guided by gradients")
    return missing
