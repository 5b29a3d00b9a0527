"""What keeps a recipe from being carried out, as sentences with the remedy; the plan collects them all."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fewbit.adaptation import require_divisible
from fewbit.corrections import on_layers
from fewbit.errors import GroupSizeError
from fewbit.formats.integer import Int
from fewbit.integer_bias import BiasType
from fewbit.interfaces import Layer, QuantizedLayer, Target
from fewbit.recipe import Recipe
from fewbit.schemes.granularity import PerChannel, PerGroup, PerTensor
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import Scheme
from fewbit.transforms import on_models


def idle_rules(recipe: Recipe, layers: Sequence[Layer]) -> list[str]:
    """Return a sentence for each rule that takes no layer, unless it may."""
    problems = []
    winners = {recipe.winner(layer) for layer in layers}
    for number, rule in enumerate(recipe.rules):
        if rule.optional or number in winners:
            continue
        if any(rule.matches(layer) for layer in layers):
            problems.append(f"rule [{rule}] has no effect: earlier rules take every layer it matches; move it up")
        else:
            if rule.kind == "attention" and not any(layer.kind == "attention" for layer in layers):
                problems.append(
                    f"rule [{rule}] matches no layer: a run of the model showed no product inside attention"
                )
                continue
            names = ", ".join(f"{layer.name} ({layer.kind})" for layer in layers[:6])
            more = f" and {len(layers) - 6} more" if len(layers) > 6 else ""
            problems.append(f"rule [{rule}] matches no layer; the layers are: {names or 'none'}{more}")
    return problems


def nothing_quantized(layers: Sequence[Layer]) -> str:
    """Return why a recipe that quantizes none of `layers` does so."""
    if not layers:
        return "the model has no layer that fewbit can quantize: no linear layer, Conv1D or embedding"
    kinds = ", ".join(sorted({layer.kind for layer in layers}))
    return f"the recipe quantizes none of the {len(layers)} layers (kinds: {kinds}); add a rule that matches some"


def uncorrected(recipe: Recipe, corrected: Sequence[Layer]) -> list[str]:
    """Return a sentence if the corrections of a recipe apply to no layer."""
    wished = on_layers(recipe.corrections)
    if not wished or corrected:
        return []
    names = ", ".join(own.name for own in wished)
    return [f"correction {names} has no effect: no layer that is quantized has a bias; leave it out"]


def layer_problems(quantized: QuantizedLayer, bias: BiasType, target: Target | None) -> list[str]:
    """Return why a layer cannot be quantized so, by itself or in the checkpoint format.

    `bias` is what the rule asks for, also where there is none yet: a folded BatchNorm brings one.
    """
    problems = []
    try:
        require_divisible(quantized.layer.shape[1], quantized.scheme)
    except GroupSizeError as error:
        problems.append(str(error))
    if target and (problem := target.problem(quantized)):
        problems.append(problem)
    return [*problems, *_activation_problems(quantized), *(_bias_problems(quantized) if bias == "int32" else [])]


def _activation_problems(quantized: QuantizedLayer) -> list[str]:
    """Return why the input or output of a layer cannot be rounded so."""
    layer, problems = quantized.layer, []
    if quantized.input and layer.kind == "embedding":
        problems.append("the input of an embedding is indices; leave out `input`")
    for name, scheme in {"input": quantized.input, "output": quantized.output}.items():
        if scheme and isinstance(scheme.granularity, PerGroup):
            width = layer.shape[1 if name == "input" else 0]
            if layer.kind == "conv":
                problems.append(f"{name} {scheme}: a convolution takes no groups; use token or tensor")
            elif width % scheme.granularity.size:
                problems.append(f"{name} {scheme}: its width {width} is not a multiple of the group; use token")
    return problems


def _bias_problems(quantized: QuantizedLayer) -> list[str]:
    """Return why the bias of a layer has no unit to be counted in, scale of the input x scale of the weight."""
    if quantized.layer.kind == "embedding":
        return ["an embedding has no bias; leave out `bias`"]
    problems, given, weight = [], quantized.input, quantized.scheme
    known = given and given.static and given.granularity == PerTensor() and isinstance(given.format, Int)
    if not known:
        found = f"'{input_scheme_to_text(given)}'" if given else "float"
        problems.append(
            f"an int32 bias needs integer inputs of one fixed scale, and its input is {found}; "
            "use input = 'int8 static', or leave out `bias`"
        )
    plain = isinstance(weight.format, Int) and weight.scale_scheme is None and not weight.float_zero
    if not plain or weight.granularity not in (PerChannel(), PerTensor()):
        problems.append(
            f"an int32 bias needs integer weights of one scale an output, and its weight is '{weight}'; "
            "use weight = 'int8', or leave out `bias`"
        )
    return problems


def width_problems(recipe: Recipe, target: Target | None) -> list[str]:
    """Return that the files of `target` would be read into layers of other widths, if so."""
    widening = [own.name for own in on_models(recipe.transforms) if own.widens_layers]
    if not widening or target is None or target.holds_graph:
        return []
    return [
        f"{' and '.join(widening)} makes layers wider than the model's configuration says, and {target.name} files are "
        "read into layers of those widths; leave it out, or write an ONNX file"
    ]


def product_problems(product: Layer, scheme: Scheme, target: Target | None) -> list[str]:
    """Return why the operands of a product inside attention cannot be rounded so."""
    problems = []
    if isinstance(scheme.granularity, PerChannel):
        text = input_scheme_to_text(scheme)
        problems.append(f"operands {text}: those of attention have no channels of their own; use tensor")
    if target and (problem := target.product_problem(product, scheme)):
        problems.append(problem)
    return problems


def several(names: Collection[str]) -> str:
    """Return the first name and how many more there are.

    >>> several(["a", "b", "c"])
    'a and 2 more'
    """
    first = next(iter(names))
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
