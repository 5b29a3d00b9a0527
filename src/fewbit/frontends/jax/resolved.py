"""A recipe resolved against a JAX function before any work: what each parameter becomes, and why others stay float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from fewbit.composition import composition_problems
from fewbit.errors import NotYetError
from fewbit.frontends.jax.missing_here import missing_here
from fewbit.frontends.jax.operation import Operation
from fewbit.frontends.jax.packed_weight import Description
from fewbit.frontends.jax.parameters import Function
from fewbit.frontends.jax.quantized_leaf import require_finite
from fewbit.frontends.jax.rewriting import runs_as
from fewbit.frontends.jax.view import to_matrices
from fewbit.numerics.namespace import Array
from fewbit.plan_row import PlanRow
from fewbit.planning import Plan, resolve
from fewbit.presets import parse_recipe
from fewbit.recipe import Recipe
from fewbit.shared_scales import with_partners
from fewbit.transforms.scope import LinkTransform


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe resolved against a function of parameters and inputs."""

    found: Function
    recipe: Recipe
    plan: Plan

    @classmethod
    def of(cls, function: Any, parameters: Any, rules: Any, inputs: Sequence[Any]) -> Resolved:
        """Return what is to be done, or raise that it cannot be."""
        recipe = parse_recipe(rules if isinstance(rules, str | Path | Recipe) else Recipe(list(rules)))
        if missing := missing_here(recipe):
            raise NotYetError(f"JAX functions do not have {missing[0]} in this version; leave it out")
        found = Function.traced(function, parameters, inputs)
        recipe = found.with_scopes(recipe)
        found.require_reached(recipe)
        types = {own.dtype for own in found.parameters}
        storage: Any = types.pop() if len(types) == 1 else "float32"
        plan = resolve(
            getattr(function, "__name__", "function"),
            found.layers,
            (),
            recipe,
            storage_type=storage if storage in ("float16", "bfloat16") else "float32",
            differentiable=False,
        )
        plan = replace(plan, problems=(*plan.problems, *composition_problems(recipe, plan.quantized)))
        plan.require_sound()
        return cls(found, recipe, plan)

    @property
    def rows(self) -> dict[str, PlanRow]:
        """What is quantized, by name."""
        return {row.layer.name: row for row in self.plan.rows if row.scheme}

    @property
    def about(self) -> dict[int, Description]:
        """The same by place among the leaves."""
        rows = self.rows
        return {own.place: own.described(rows[own.name]) for own in self.found.parameters if own.name in rows}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was changed to make the recipe fit."""
        left = [own for own in self.recipe.transforms if not isinstance(own, LinkTransform)]
        folded = [f"transform {own.name} is left out: norms stay operations" for own in left]
        return (*folded, *self.plan.adaptations)

    def fused(self, leaves: Sequence[Any]) -> Resolved:
        """Return the same with one global scale for parameters of the same input; traced ones keep each their own."""
        if any(isinstance(leaves[place], jax.core.Tracer) for place in self.about):
            return self
        return replace(self, plan=with_partners(self.plan, self.found.shared_inputs))

    def matrix(self, leaves: Sequence[Any], name: str, place: int) -> Array:
        """Return the float matrix (out, in) at a place of the stack of a parameter."""
        at, about = next((at, about) for at, about in self.about.items() if about.name == name)
        stack = to_matrices(require_finite(leaves[at], about), about.layout)
        found: Array = stack.reshape((-1, *stack.shape[-2:]))[place]
        return found

    def table(self, remarks: Mapping[str, Sequence[str]]) -> tuple[Operation, ...]:
        """Return a row for each operation that multiplies, with `remarks` on parameters by name."""
        found, about = self.found, {own.name: own for own in self.about.values()}
        rows = {row.layer.name: row for row in self.plan.rows}
        parameters = {own.place: own for own in found.parameters}
        table = []
        for use in found.discovery.uses:
            if use.parameter is None or use.product is None:
                note = "no parameter that a rule could name is multiplied here"
                table.append(
                    Operation(weight="", primitive=use.primitive, scope=use.scope, kind="product", notes=(note,))
                )
                continue
            own = parameters[use.parameter]
            row, described = rows[own.name], about.get(own.name)
            further = ["also returned, as floats"] if own.returned and described else []
            table.append(
                Operation(
                    weight=own.name,
                    primitive=use.primitive,
                    scope=use.scope,
                    kind=use.product.kind,
                    shape=use.product.layout.matrix,
                    stack=use.product.layout.shape[:-2],
                    becomes=row.becomes,
                    runs=runs_as(use.primitive, use.product, described) if described else "as it was",
                    notes=(*row.notes, *remarks.get(own.name, ()), *further),
                )
            )
        read = {own.name for own in found.parameters}
        changed = {name: f"changed by {why}" for name, (_, why) in found.changed.items() if name not in read}
        table += [
            Operation(weight=name, primitive="", scope="", kind="", notes=(why,)) for name, why in changed.items()
        ]
        return tuple(table)
