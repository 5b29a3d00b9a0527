"""The parameters of a function as layers: names by their paths in the tree, kinds by the operations that read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from fewbit.errors import PlanError
from fewbit.frontends.jax.discovery import Discovery, Use, discover
from fewbit.frontends.jax.packed_weight import Description
from fewbit.frontends.jax.product import Product
from fewbit.frontends.jax.view import Layout
from fewbit.interfaces import Layer, LayerKind
from fewbit.plan_row import PlanRow
from fewbit.recipe import Recipe

#: What a parameter in a box of its own is called there: `nnx.Param`.
_BOXES = (".value", ".raw_value", ".get_value()")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter that is the weight of at least one operation."""

    #: Its place among the leaves, and its path.
    place: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    uses: tuple[Use, ...]
    returned: bool = False

    @property
    def products(self) -> list[Product]:
        """What multiplies by it."""
        return [use.product for use in self.uses if use.product is not None]

    @property
    def layout(self) -> Layout:
        """Its matrices, as the first operation that reads it has them."""
        return self.products[0].layout

    @property
    def layer(self) -> Layer:
        """It as rules see it; what is embedding and head in one is an embedding."""
        kinds: list[LayerKind] = [product.kind for product in self.products]
        kind: LayerKind = "embedding" if "embedding" in kinds else kinds[0]
        return Layer(
            self.name, kind, self.layout.matrix, self.uses[0].primitive,
            stored=self.shape, multiplies_rows=kind != "embedding", groups=self.products[0].groups,
        )  # fmt: skip

    def described(self, row: PlanRow) -> Description:
        """Return what it becomes by a row of the plan."""
        assert row.scheme is not None
        return Description(self.name, self.shape, self.dtype, self.layout, row.scheme, row.input)


@dataclass(frozen=True, slots=True)
class Function:
    """What a function does with its parameters."""

    parameters: tuple[Parameter, ...]
    discovery: Discovery
    #: Paths of all leaves.
    names: tuple[str, ...]

    @classmethod
    def traced(cls, function: Any, parameters: Any, inputs: Sequence[Any]) -> Function:
        """Return what `function(parameters, *inputs)` does; nothing is computed."""
        paths, _ = jax.tree_util.tree_flatten_with_path(parameters)
        names = tuple(named(path) for path, _ in paths)
        closed = jax.make_jaxpr(function)(parameters, *inputs)
        discovery = discover(closed, len(names))
        found = []
        for place, variable in enumerate(closed.jaxpr.invars[: len(names)]):
            uses = tuple(use for use in discovery.uses if use.parameter == place)
            if uses:
                shape, dtype = tuple(variable.aval.shape), str(variable.aval.dtype)
                found.append(Parameter(place, names[place], shape, dtype, uses, place in discovery.returned))
        return cls(tuple(found), discovery, names)

    def with_scopes(self, recipe: Recipe) -> Recipe:
        """Return a recipe whose rules match parameters by the scopes of the operations that read them too."""
        rules = []
        for rule in recipe.rules:
            scoped = [
                own.name
                for own in self.parameters
                if rule.match is not None and any(re.fullmatch(rule.match, use.scope) for use in own.uses)
            ]
            names = [name for name in scoped if not re.fullmatch(rule.match or "", name)]
            further = "".join(f"|{re.escape(name)}" for name in names)
            rules.append(replace(rule, match=f"{rule.match}{further}") if further else rule)
        return replace(recipe, rules=tuple(rules))

    def width(self, place: int) -> int:
        """Return how many channels the input of a parameter has."""
        own = next(own for own in self.parameters if own.place == place)
        product, columns = own.products[0], own.layout.matrix[1]
        if product.kind != "conv":
            return columns
        return own.shape[product.contracted[0]] * product.groups

    @property
    def shared_inputs(self) -> list[list[str]]:
        """The parameters, two or more, that are each multiplied once, by the same numbers."""
        found: dict[object, list[str]] = {}
        for own in self.parameters:
            numbers = own.uses[0].numbers if len(own.uses) == 1 else None
            if numbers is not None and own.layer.kind == "linear":
                found.setdefault(numbers, []).append(own.name)
        return [names for names in found.values() if len(names) > 1]

    @property
    def changed(self) -> dict[str, tuple[Layer, str]]:
        """The weights that are changed before anything multiplies by them, with what changes them."""
        layers = {own.place: own.layer for own in self.parameters}
        found = {}
        for place, why in sorted(self.discovery.unreached.items()):
            name = self.names[place]
            found[name] = (layers.get(place) or Layer(name, "linear", (0, 0), "changed"), why)
        return found

    @property
    def layers(self) -> list[Layer]:
        """What rules may speak of: what is multiplied by, then what is changed before."""
        known = [own.layer for own in self.parameters]
        names = {layer.name for layer in known}
        return [*known, *(layer for layer, _ in self.changed.values() if layer.name not in names)]

    def require_reached(self, recipe: Recipe) -> None:
        """Raise `PlanError` where a rule quantizes a weight that is changed first, or used in unlike ways."""
        problems = []
        for layer, why in self.changed.values():
            winner = recipe.winner(layer)
            if winner is not None and not recipe.rules[winner].keep:
                problems.append(
                    f"{layer.name}: a rule quantizes it, and it is changed by {why} before it is multiplied with; keep "
                    "it, or change it before it becomes a parameter"
                )
        for own in self.parameters:
            stacks = {product.layout.stack for product in own.products}
            winner = recipe.winner(own.layer)
            if len(stacks) > 1 and winner is not None and not recipe.rules[winner].keep:
                problems.append(f"{own.name}: it is a stack of matrices in one place and another in the next; keep it")
            layouts = {product.layout for product in own.products if product.kind != "embedding"}
            if len(layouts) > 1 and winner is not None and recipe.rules[winner].input is not None:
                problems.append(
                    f"{own.name}: operations multiply it along different axes, and a rule rounds the input of one; "
                    "leave out `input`, or keep it"
                )
        if problems:
            raise PlanError("\n".join(problems))


def named(path: Any) -> str:
    """Return the name of a leaf by its path."""
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return next((name.removesuffix(box) for box in _BOXES if name.endswith(box)), name)
