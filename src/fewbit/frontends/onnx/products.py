"""Products inside attention of a graph: what goes into them, what cannot be rounded there, and their two forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewbit.activation import Activation
from fewbit.errors import FewbitError
from fewbit.frontends.onnx.calibration import gather
from fewbit.frontends.onnx.rounding import rounding_problem
from fewbit.interfaces import Layer
from fewbit.onnx_graph.attention import GraphProduct, find_products
from fewbit.onnx_graph.live import OnnxModel
from fewbit.problems import several
from fewbit.schemes.granularity import PerGroup
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import Scheme


class OnnxProductForms:
    """A product in its two forms; the float one is installed at first."""

    def __init__(self, model: OnnxModel, product: GraphProduct, rounded: Mapping[str, Activation]) -> None:
        self.model, self.layer = model, product.layer
        #: Where it is in the float graph, and how its operands are rounded.
        self.product, self.rounded = product, rounded

    def install(self) -> None:
        """Put the rounded form into the model."""
        self.model.products[self.layer.name] = self.rounded

    def restore(self) -> None:
        """Put the float form back."""
        self.model.products.pop(self.layer.name, None)


def product_forms(
    model: OnnxModel, products: Sequence[Layer], activations: Mapping[str, Mapping[str, Activation]]
) -> list[OnnxProductForms]:
    """Return the rounded forms of those `products` that have `activations`, by operand; none is installed yet."""
    known = _known(model)
    names = [layer.name for layer in products if layer.name in activations]
    return [OnnxProductForms(model, known[name], activations[name]) for name in names]


def product_statistics(
    model: OnnxModel, products: Sequence[Layer], wanted: Mapping[str, str], batches: Sequence[Any]
) -> dict[str, dict[str, Any]]:
    """Return by operand the statistic that is `wanted` of all numbers that go into each of `products`."""
    known = _known(model)
    wanted = {layer.name: wanted[layer.name] for layer in products if layer.name in wanted}
    found: dict[str, dict[str, Any]] = {name: {} for name in wanted}
    for statistic in dict.fromkeys(wanted.values()):
        places = {
            (name, operand): known[name].value(operand).name or ""
            for name, own in wanted.items()
            if own == statistic
            for operand in known[name].operands
        }
        try:
            seen = gather(model, dict.fromkeys(places.values(), statistic), batches, lambda _, own: own.reshape(-1, 1))
        except FewbitError as error:
            raise type(error)(f"products inside attention: {error}") from error
        for (name, operand), value in places.items():
            found[name][operand] = seen[value]
    return found


def product_problems(model: OnnxModel, wanted: Sequence[tuple[Layer, Scheme]]) -> list[str]:
    """Return a sentence for each thing that a graph cannot do with its products."""
    known = _known(model)
    alike: dict[str, list[str]] = {}
    for layer, scheme in wanted:
        own = known[layer.name]
        text = _problem(scheme, inside=own.node.graph is not model.graph.graph)
        if own.float_reason:
            text = f"{own.float_reason}; keep it, or export the attention as MatMul and Softmax"
        if text:
            alike.setdefault(text, []).append(layer.name)
    return [f"{several(names)}: {text}" for text, names in alike.items()]


def _known(model: OnnxModel) -> dict[str, GraphProduct]:
    return {own.layer.name: own for own in find_products(model.graph)}


def _problem(scheme: Scheme, *, inside: bool) -> str | None:
    if inside and scheme.static and scheme.ranging.statistic:
        return (
            "it is inside of a branch or a loop, whose values onnxruntime does not show; keep it, or use dynamic ranges"
        )
    if isinstance(scheme.granularity, PerGroup):
        return f"operands {input_scheme_to_text(scheme)}: those of a graph take no groups; use token or tensor"
    return rounding_problem(scheme)
