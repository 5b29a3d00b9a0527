"""What calibration batches put into the products with weights: the float function, run step by step, and watched.

Loops and branches run in Python meanwhile, so that each matrix of a stack has statistics of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fewbit.catalogue import lookup
from fewbit.errors import CalibrationError
from fewbit.frontends.jax.equation import bind
from fewbit.frontends.jax.interpreter import Interpreter
from fewbit.frontends.jax.packed_weight import Description
from fewbit.frontends.jax.product import Product
from fewbit.frontends.jax.rows import patches, rows_of
from fewbit.frontends.jax.view import to_matrices
from fewbit.frontends.jax.weight import FloatWeight, Weight, concrete
from fewbit.statistics import STATISTICS

#: Statistics by name, of a matrix of a parameter.
Seen = dict[tuple[str, int], dict[str, Any]]


class Observation:
    """Statistics of the inputs of parameters, by the parameter's name and the place in its stack."""

    def __init__(self, wanted: Mapping[str, Sequence[str]]) -> None:
        self._wanted = wanted
        self.seen: Seen = {}

    def run(self, function: Any, parameters: Any, inputs: tuple[Any, ...], about: Mapping[int, Description]) -> None:
        """Run `function` on a batch, watching the parameters whose places among the leaves `about` has."""
        leaves, _ = jax.tree.flatten(parameters)
        closed = jax.make_jaxpr(function)(parameters, *inputs)
        given = [watched(own, about[place]) if place in about else own for place, own in enumerate(leaves)]
        Interpreter(self._multiply, eager=True)(closed.jaxpr, closed.consts, [*given, *jax.tree.leaves(inputs)])

    def _multiply(self, equation: Any, product: Product, operands: list[Any], weight: Weight) -> Any:
        if product.kind != "embedding" and product.layout == weight.about.layout:
            self.watch(equation, product, operands, weight)
        return bind(equation, [concrete(own) for own in operands])[0]

    def watch(self, equation: Any, product: Product, operands: list[Any], weight: Weight) -> None:
        """Take in what a product multiplies a weight with, that is laid out there as it was quantized."""
        held, wanted = weight.held, self._wanted.get(weight.about.name, ())
        assert isinstance(held, FloatWeight)
        if not wanted:
            return
        places = np.asarray(held.places).reshape(-1)
        given = operands[1 - product.position]
        rows = rows_of(equation, product, given).values
        if product.kind == "conv":
            for name in wanted:
                of_rows = getattr(lookup(STATISTICS, name, what="statistic"), "of_rows", True)
                values = patches(equation, given) if of_rows else np.moveaxis(_numbers(rows), 1, -1)
                self._update(weight.about, int(places[0]), name, _numbers(values), product.groups if of_rows else 1)
            return
        values = _numbers(rows)
        if equation.primitive.name.startswith("ragged"):
            ends = np.cumsum(np.asarray(operands[2]))
            parts = [values[end - size : end] for end, size in zip(ends, np.asarray(operands[2]), strict=True)]
        else:
            parts = list(values.reshape((len(places), -1, values.shape[-1])))
        for place, part in zip(places, parts, strict=True):
            for name in wanted:
                self._update(weight.about, int(place), name, part, 1)

    def _update(self, about: Description, place: int, name: str, values: Any, groups: int) -> None:
        own, width = self.seen.setdefault((about.name, place), {}), values.shape[-1]
        if name not in own:
            kind = lookup(STATISTICS, name, what="statistic")
            if groups > 1 and not hasattr(kind, "of_groups"):
                raise CalibrationError(f"{about.name}: {name} is not gathered of convolutions in groups; keep it")
            own[name] = kind.of_groups(width // groups, groups, values) if groups > 1 else kind.init(width, values)
        own[name].update(values)


def watched(leaf: Any, about: Description) -> Weight:
    """Return a float parameter as a weight that knows which matrix of its stack each is."""
    matrices = to_matrices(leaf, about.layout)
    stack = matrices.shape[:-2]
    return Weight.of(FloatWeight(matrices, np.arange(int(np.prod(stack))).reshape(stack), about))


def _numbers(values: Any) -> np.ndarray[Any, Any]:
    return np.asarray(values, dtype=np.float32)
