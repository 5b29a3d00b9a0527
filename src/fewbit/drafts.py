"""A layer's row of the plan while it is worked out: the rule that takes it, and what becomes of its schemes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fewbit.adaptation import adapt
from fewbit.algorithms import problem_of
from fewbit.algorithms.gptq import Gptq
from fewbit.algorithms.nearest import Nearest
from fewbit.corrections import Correction
from fewbit.interfaces import Layer, QuantizedLayer, Target
from fewbit.problems import layer_problems, product_problems, several
from fewbit.recipe import Recipe
from fewbit.rule import Rule
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import ScaleType, Scheme


@dataclass(slots=True)
class Draft:
    """A layer's row while it is worked out."""

    layer: Layer
    rule: Rule | None
    scheme: Scheme | None
    notes: list[str] = field(default_factory=list)
    #: The corrections of the recipe, whether they apply here or not.
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
    draft = Draft(layer, rule, rule.weight, notes, recipe.corrections)
    if recipe.corrections and rule.weight is not None and not draft.corrections:
        notes.append("it has no bias to correct" if not layer.bias else "no correction applies to it")
    return draft


def without_convolutions(drafts: list[Draft], target: Target | None, storage_type: ScaleType) -> list[str]:
    """Keep the convolutions that `target` has no layout for, such as the patches of a ViT; return what to say of it."""
    kept: dict[str, list[str]] = {}
    for draft in drafts:
        convolution = draft.scheme and draft.layer.kind == "conv"
        if target and convolution and target.problem(draft.quantized(storage_type)):
            draft.scheme = None
            draft.notes.append(f"kept: {target.name} holds no {draft.layer.module_class}")
            kept.setdefault(draft.layer.module_class, []).append(draft.layer.name)
    return [f"{several(names)}: kept float, {target.name} holds no {kind}" for kind, names in kept.items() if target]


def fitted_to(drafts: list[Draft], target: Target | None, storage_type: ScaleType) -> list[str]:
    """Give layers the nearest schemes that `target` has a form for; return what to say of it."""
    alike: dict[str, list[str]] = {}
    for draft in drafts:
        if target is None or draft.scheme is None:
            continue
        asked = draft.quantized(storage_type)
        fitted = target.fitted(asked)
        for name in ("input", "output"):
            before, after = getattr(asked, name), getattr(fitted, name)
            if before != after:
                was, now = (input_scheme_to_text(own) if own else "float" for own in (before, after))
                alike.setdefault(f"{name} '{was}' -> '{now}', the nearest that {target.name} has", []).append(
                    draft.layer.name
                )
        if fitted.scheme != asked.scheme:
            text = f"weight '{asked.scheme}' -> '{fitted.scheme}', which loses less in files for {target.name}"
            alike.setdefault(text, []).append(draft.layer.name)
        draft.scheme, draft.fitted = fitted.scheme, fitted
    return [f"{several(names)}: {text}" for text, names in alike.items()]


def cast_too(drafts: list[Draft]) -> list[str]:
    """Cast what a preset of casts keeps, since the graph around it is cast too; return what to say of it."""
    schemes = {draft.scheme for draft in drafts if draft.scheme}
    scheme = next(iter(schemes), None)
    if len(schemes) != 1 or scheme is None or scheme.scaled:
        return []
    names = []
    for draft in drafts:
        rule = draft.rule
        if rule is not None and rule.keep and rule.optional:
            given = scheme if draft.layer.kind != "embedding" else None
            draft.rule = Rule(kind=draft.layer.kind, weight=scheme, input=given, algorithm=Nearest(), optional=True)
            draft.scheme, draft.notes = scheme, []
            names.append(draft.layer.name)
    return [f"{several(names)}: {scheme} too, as the whole graph is"] if names else []


def without_torch(drafts: list[Draft]) -> list[str]:
    """Round 8-bit weights to nearest where GPTQ cannot run, as it needs torch; return what to say of it."""
    names = []
    for draft in drafts:
        rule, scheme = draft.rule, draft.scheme
        if rule is not None and scheme is not None and isinstance(rule.algorithm, Gptq) and scheme.format.bits >= 8:
            draft.rule = replace(rule, algorithm=Nearest())
            names.append(draft.layer.name)
    return [f"{several(names)}: rounded to nearest; pip install 'fewbit[torch]' for gptq"] if names else []


def adapted(drafts: list[Draft]) -> list[str]:
    """Let the sizes of groups fit the widths of the layers; return what to say of it."""
    changing = [draft for draft in drafts if draft.scheme]
    schemes, sentences = adapt([QuantizedLayer(draft.layer, draft.scheme) for draft in changing if draft.scheme])
    for draft, scheme in zip(changing, schemes, strict=True):
        draft.scheme = scheme
    return sentences
