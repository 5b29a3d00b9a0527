"""A function of quantized parameters and inputs, an ordinary function to JAX: jit, grad, vmap, export.

It is compiled, and traced anew for other shapes, so that whatever shapes the float function takes, it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from fewbit.frontends.jax.operation import Operation
from fewbit.frontends.jax.packed_weight import is_packed
from fewbit.frontends.jax.rewriting import REWRITING
from fewbit.frontends.jax.weight import Weight, concrete


class QuantizedFunction:
    """Calls `function(parameters, *inputs)` with the products of quantized parameters replaced."""

    def __init__(
        self, function: Callable[..., Any], table: tuple[Operation, ...] = (), notes: tuple[str, ...] = ()
    ) -> None:
        self._function = function
        #: Every operation that multiplies, in the order of the function, and what it became.
        self.table = table
        #: What was changed to make the rules fit, and what of a recipe has no counterpart here.
        self.notes = notes
        self._compiled = jax.jit(self._evaluated)
        self.__name__ = f"quantized_{getattr(function, '__name__', 'function')}"

    def __call__(self, parameters: Any, *inputs: Any) -> Any:
        """Return what the function gives for quantized parameters, as `quantize` returned them, and inputs."""
        return self._compiled(parameters, *inputs)

    def _evaluated(self, parameters: Any, *inputs: Any) -> Any:
        leaves, tree = jax.tree.flatten(parameters, is_leaf=is_packed)
        floats = jax.tree.unflatten(tree, [own.float_form if is_packed(own) else own for own in leaves])
        closed, shape = jax.make_jaxpr(self._function, return_shape=True)(floats, *inputs)
        given = [Weight.of(own) if is_packed(own) else own for own in leaves]
        found = REWRITING(closed.jaxpr, closed.consts, [*given, *jax.tree.leaves(inputs)])
        return jax.tree.unflatten(jax.tree.structure(shape), [concrete(own) for own in found])
