"""The plan of a model that is loaded: rules resolved, and what recipe, target, front end and numbers say to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fewbit.algorithms.block import BlockAlgorithm
from fewbit.composition import composition_problems
from fewbit.errors import RecipeError
from fewbit.hints import hints_of
from fewbit.interfaces import Frontend, Source, Target, frontend_of, target_of
from fewbit.overflow import without_large_weights
from fewbit.planning import Plan, resolve
from fewbit.problems import several, width_problems
from fewbit.recipe import Recipe
from fewbit.schemes.scheme import ScaleType
from fewbit.shared_scales import with_shared_scales
from fewbit.solving import statistics_of

_STORAGE_TYPES = ("auto", "float32", "float16", "bfloat16")


def model_plan(
    source: Source,
    model: Any,
    recipe: Recipe,
    *,
    to: str | None,
    dtype: str,
    batch: Any = None,
    fused: Sequence[str] = (),
) -> Plan:
    """Return the plan for the layers of `model`, with every problem that recipe, target and front end see.

    Args:
        source: what `model` was loaded from.
        model: its numbers need not be there.
        recipe: which layer gets what.
        to: the checkpoint format that it is meant for.
        dtype: `float32`, `float16` or `bfloat16` for what stays float and for scales; `auto` is the model's.
        batch: what a run shows products inside attention on.
        fused: what to say of experts in one parameter.

    Raises:
        RecipeError: an unknown `dtype`.

    """
    target = target_of(to) if to is not None else None
    storage_type = storage_type_of(source, target, dtype)
    frontend = frontend_of(source.framework)
    graph = _is_graph(source, target)
    own = source.computes_in if graph else None
    layers = frontend.layers(model)
    if recipe.names_products:
        layers += frontend.products(model, batch)
    made = resolve(
        source.name,
        layers,
        frontend.floats(model),
        recipe,
        storage_type=storage_type,
        target=target,
        differentiable=frontend.trains,
    )
    made = _trained_alone(made, frontend, source.framework)
    quantized = [row for row in made.rows if row.scheme]
    wanted = [(own, statistics_of(row)) for own, row in zip(made.quantized, quantized, strict=True)]
    found = list(target.source_problems(source)) if target is not None else []
    found += composition_problems(recipe, made.quantized)
    found += width_problems(recipe, target)
    products = [(row.layer, row.input) for row in made.rounded_products if row.input]
    found += [*frontend.problems(model, wanted), *frontend.product_problems(model, products)]
    if graph:
        found += _type_problems(made, own, source.framework)
    return replace(made, problems=(*made.problems, *found), adaptations=(*made.adaptations, *fused))


def storage_type_of(source: Source, target: Target | None, dtype: str) -> ScaleType:
    """Return the type that float numbers and scales of files have.

    Raises:
        RecipeError: an unknown `dtype`.

    """
    if dtype not in _STORAGE_TYPES:
        raise RecipeError(f"dtype {dtype!r} is none of {', '.join(_STORAGE_TYPES)}")
    if dtype != "auto":
        return dtype  # type: ignore[return-value]
    return source.computes_in if _is_graph(source, target) else source.storage_type


def _is_graph(source: Source, target: Target | None) -> bool:
    return source.framework == "onnx" or (target is not None and target.holds_graph)


def _trained_alone(made: Plan, frontend: Frontend, framework: str) -> Plan:
    """Return the plan with layers trained each for itself where the front end gives no gradients of blocks."""
    if frontend.trains:
        return made
    rows, alike = list(made.rows), dict[str, list[str]]()
    for place, row in enumerate(rows):
        if row.scheme is not None and isinstance(row.algorithm, BlockAlgorithm):
            alike.setdefault(row.algorithm.name, []).append(row.layer.name)
            rows[place] = replace(row, algorithm=row.algorithm.alone)
    said = [
        f"{several(names)}: {name} trains each layer for its own output, as an {framework} model gives no gradients"
        for name, names in alike.items()
    ]
    return replace(made, rows=tuple(rows), adaptations=(*made.adaptations, *said))


def _type_problems(made: Plan, own: str | None, framework: str) -> list[str]:
    """Return why a graph cannot be written in the types of the plan; `own` is what the model computes in."""
    problems = []
    if made.storage_type not in (own, made.cast_whole and made.cast_whole.dtype):
        problems.append(
            f"dtype {made.storage_type}: a graph has the types that the model computes in, here {own}; leave out "
            "dtype, or use the presets fp16 and bf16"
        )
    if own == "bfloat16" and framework == "torch":
        problems.append(
            "the module computes in bfloat16, from which this version writes no graph; convert it by module.float(), "
            "and use the preset bf16 for a file in bfloat16"
        )
    return problems


def checked(made: Plan, frontend: Frontend, model: Any, batch: Any) -> Plan:
    """Return the plan with what the numbers of `model`, a run and the machine at hand have to say to it."""
    made = with_shared_scales(without_large_weights(made, frontend, model), frontend, model, batch)
    return replace(made, hints=(*made.hints, *hints_of(made, frontend, model)))
