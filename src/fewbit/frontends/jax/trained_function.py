"""A function of float parameters that rounds them, and inputs, as the quantized function will: what is trained.

Ranges that are learned lie beside the parameters, in their tree; those that stay as they began are kept here, where no
optimizer finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fewbit.activation import Activation
from fewbit.errors import NotYetError
from fewbit.frontends.jax.interpreter import Interpreter
from fewbit.frontends.jax.learned_parameter import WEIGHT, LearnedParameter, is_learned
from fewbit.frontends.jax.operation import Operation
from fewbit.frontends.jax.packed_weight import Description
from fewbit.frontends.jax.quantized_function import QuantizedFunction
from fewbit.frontends.jax.quantized_leaf import Solve, quantized_leaf
from fewbit.frontends.jax.rewriting import multiply
from fewbit.frontends.jax.trained_product import multiply_codes
from fewbit.frontends.jax.trained_ranges import TrainedRanges
from fewbit.frontends.jax.trained_weight import TrainedWeight
from fewbit.frontends.jax.view import to_matrices
from fewbit.frontends.jax.weight import Weight, concrete
from fewbit.interfaces.gradient import Gradient
from fewbit.numerics.namespace import Array
from fewbit.qtensor import QTensor


class TrainedFunction:
    """Calls `function(parameters, *inputs)`, parameters float, with what rules name rounded where it is multiplied."""

    def __init__(
        self,
        function: Callable[..., Any],
        about: Mapping[int, Description],
        ranges: TrainedRanges,
        *,
        integers: bool = False,
        said: tuple[tuple[Operation, ...], tuple[str, ...]] = ((), ()),
    ) -> None:
        self._function, self._about, self._ranges = function, dict(about), ranges
        #: What `fewbit.jax.finish_qat` will give: every operation that multiplies, and what it becomes.
        self.table = said[0]
        #: What was changed to make the rules fit, and what of a recipe has no counterpart here.
        self.notes = said[1]
        self._run = Interpreter(multiply_codes if integers else multiply)
        self._compiled = jax.jit(self._evaluated)
        self.__name__ = f"trained_{getattr(function, '__name__', 'function')}"

    def begin(self, parameters: Any) -> Any:
        """Return the tree that is trained: `parameters` with learned ranges beside the weights that have some.

        Where nothing is learned it is the tree as it was. Works under `jax.eval_shape`, for a checkpoint's shapes.
        """
        leaves, tree = jax.tree.flatten(parameters)
        for place, about in self._about.items():
            if found := self._ranges.first(place, leaves[place], about):
                leaves[place] = LearnedParameter({WEIGHT: leaves[place], **found}, about)
        return jax.tree.unflatten(tree, leaves)

    def __call__(self, parameters: Any, *inputs: Any) -> Any:
        """Return what the function gives for rounded parameters and inputs.

        Raises:
            PlanError: parameters without the ranges that are learned.

        """
        return self._compiled(parameters, *inputs)

    def _evaluated(self, parameters: Any, *inputs: Any) -> Any:
        leaves, tree = jax.tree.flatten(parameters, is_leaf=is_learned)
        floats = [_weight(own) for own in leaves]
        closed, shape = jax.make_jaxpr(self._function, return_shape=True)(jax.tree.unflatten(tree, floats), *inputs)
        given = list(floats)
        for place, about in self._about.items():
            ranges = self._ranges.of(place, leaves[place], about)
            matrices = to_matrices(floats[place].astype("float32"), about.layout)
            given[place] = Weight.of(TrainedWeight(matrices, ranges, about, self._ranges.gradient))
        found = self._run(closed.jaxpr, closed.consts, [*given, *jax.tree.leaves(inputs)])
        return jax.tree.unflatten(jax.tree.structure(shape), [concrete(own) for own in found])

    def finished(self, parameters: Any) -> tuple[QuantizedFunction, Any]:
        """Return the quantized function, and its parameters: the codes and ranges that training has come to."""
        leaves, tree = jax.tree.flatten(parameters, is_leaf=is_learned)
        for place, about in self._about.items():
            ranges = self._ranges.of(place, leaves[place], about)
            solve = _codes_of(ranges, about, self._ranges.gradient)
            leaves[place] = quantized_leaf(_weight(leaves[place]), about, solve)
        run = QuantizedFunction(self._function, self.table, self.notes)
        return run, jax.tree.unflatten(tree, leaves)


def _weight(leaf: Any) -> Any:
    return leaf.weight if is_learned(leaf) else leaf


def _codes_of(ranges: Mapping[str, Array], about: Description, gradient: Gradient) -> Solve:
    """Return what gives the codes of a parameter's matrices, and how their inputs are rounded."""
    rank = len(about.layout.shape) - 2
    flat = {name: np.asarray(own).reshape((-1, *own.shape[rank:])) for name, own in ranges.items()}

    def solve(matrix: Array, place: int) -> tuple[QTensor, Activation | None]:
        held = TrainedWeight(matrix, {name: own[place] for name, own in flat.items()}, about, gradient)
        return held.qtensor(), held.activation() if about.input is not None else None

    return solve


def require_trainable(own: Description) -> None:
    """Raise `NotYetError` where training cannot round a parameter or its input."""
    if own.scheme.learned or own.scheme.span is not None:
        raise NotYetError(f"{own.name}: {own.scheme} is searched on the host and not for training; use int4 g32")
    if own.input is not None and own.input.fixes_unit:
        raise NotYetError(f"{own.name}: training fixes no scale of scales; leave out 'static' of its input")
