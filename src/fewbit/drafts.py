"""A layer's row of the plan while it is worked out: the rule that takes it, and what becomes of its schemes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fewbit.algorithms import problem_of
from fewbit.algorithms.nearest import Nearest
from fewbit.corrections import Correction, on_layers
from fewbit.interfaces import Layer, QuantizedLayer, Target
from fewbit.problems import layer_problems, product_problems
from fewbit.ranges import OutputRange
from fewbit.recipe import Recipe
from fewbit.rule import Rule
from fewbit.schemes.scheme import ScaleType, Scheme


@dataclass(slots=True)
class Draft:
    """A layer's row while it is worked out."""

    layer: Layer
    rule: Rule | None
    scheme: Scheme | None
    notes: list[str] = field(default_factory=list)
    #: The corrections of the recipe that move biases, whether they apply here or not.
    wished: tuple[Correction, ...] = ()
    #: Schemes of input and output, where they are others than those of the rule.
    fitted: QuantizedLayer | None = None

    @property
    def product(self) -> Scheme | None:
        """The scheme of both operands, if this is a product inside attention that is rounded."""
        own = self.rule.input if self.rule and self.layer.kind == "attention" else None
        return own and own.stored_as("float32")

    @property
    def corrections(self) -> tuple[Correction, ...]:
        """What repairs the layer: nothing where it has no bias or its output is not rows of its input times codes."""
        apt = self.scheme is not None and self.scheme.scaled and self.layer.bias and self.layer.multiplies_rows
        return self.wished if apt else ()

    def quantized(self, storage_type: ScaleType) -> QuantizedLayer:
        """Return the layer with its schemes, the types of static scales settled."""
        assert self.scheme is not None
        assert self.rule is not None
        own = self.fitted or self.rule
        given = own.input, own.output
        both = [own and own.stored_as(storage_type if own.static else "float32") for own in given]
        bias = self.rule.bias if self.layer.bias else "float"
        return QuantizedLayer(self.layer, self.scheme, input=both[0], output=both[1], bias=bias)

    def problems(self, storage_type: ScaleType, target: Target | None) -> list[str]:
        """Return why the layer cannot have its schemes."""
        if self.product is not None:
            return product_problems(self.layer, self.product, target)
        if self.scheme is None or self.rule is None:
            return []
        own = problem_of(self.rule.algorithm, self.scheme)
        found = layer_problems(self.quantized(storage_type), self.rule.bias, target)
        return [own, *found] if own else found


def draft_of(layer: Layer, recipe: Recipe) -> Draft:
    """Return the row of `layer` as the first rule that takes it has it."""
    place = recipe.winner(layer)
    if place is None:
        return Draft(layer, None, None, ["no rule matches"])
    rule = recipe.rules[place]
    notes = [f"kept by rule {rule.match or rule.kind!r}"] if rule.keep else []
    notes += ["it has no bias to round"] if rule.bias != "float" and not layer.bias else []
    wished = on_layers(recipe.corrections)
    draft = Draft(layer, rule, rule.weight, notes, wished)
    if wished and rule.weight is not None and not draft.corrections:
        notes.append("it has no bias to correct" if not layer.bias else "no correction applies to it")
    return draft


def sharing(drafts: Sequence[Draft], place: int) -> tuple[str | None, bool]:
    """Return the layer before a draft whose codes it shares, and whether it shares them with any layer at all."""
    twin = _twin_of(drafts[place], drafts[:place])
    return twin, twin is not None or any(_twin_of(own, [drafts[place]]) for own in drafts[place + 1 :])


def _twin_of(draft: Draft, others: Sequence[Draft]) -> str | None:
    """Return which of `others` has the same weight and gets the very same codes, since neither sees any data."""
    blind = draft.scheme is not None and not isinstance(draft.scheme.ranging, OutputRange)
    for own in others if blind else ():
        algorithms = [one.rule and one.rule.algorithm for one in (draft, own)]
        if own.layer.name in draft.layer.tied and own.scheme == draft.scheme and algorithms == [Nearest(), Nearest()]:
            return own.layer.name
    return None
