"""A float parameter that is rounded at every use, so that its gradient passes straight through: training.

w' = fake_quantize(w), the values that codes of w would stand for; source of the gradient: arXiv 1308.3432.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from fewbit.activation import Activation
from fewbit.errors import NotYetError
from fewbit.frontends.jax.interpreter import Interpreter
from fewbit.frontends.jax.packed_weight import Description
from fewbit.frontends.jax.rewriting import multiply
from fewbit.frontends.jax.view import to_matrices
from fewbit.frontends.jax.weight import Weight, concrete
from fewbit.numerics.namespace import Array
from fewbit.qtensor import fake_quantize


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, slots=True)
class TrainedWeight:
    """A parameter as float matrices (..., out, in), or what is left of them."""

    values: Array
    about: Description

    @property
    def stack(self) -> tuple[int, ...]:
        """The axes that are left of the stack."""
        return tuple(self.values.shape[:-2])

    def matrices(self) -> Array:
        """Return the matrices rounded; gradients pass straight through."""
        function: Any = lambda own: fake_quantize(own, self.about.scheme)  # noqa: E731  # grows by a vmap an axis
        for _ in self.stack:
            function = jax.vmap(function)
        rounded: Array = function(self.values)
        return rounded

    def activation(self) -> Activation:
        """Return how the input is rounded."""
        assert self.about.input is not None
        return Activation(scheme=self.about.input)

    def tree_flatten(self) -> tuple[Any, Any]:
        """Return arrays, and the rest."""
        return (self.values,), self.about

    @classmethod
    def tree_unflatten(cls, rest: Any, arrays: Any) -> TrainedWeight:
        """Undo `tree_flatten`."""
        (values,) = arrays
        return cls(values, rest)


class TrainedFunction:
    """Calls `function(parameters, *inputs)`, parameters float, with what rules name rounded where it is multiplied."""

    def __init__(self, function: Callable[..., Any], about: Mapping[int, Description]) -> None:
        for own in about.values():
            if own.scheme.learned or own.scheme.span is not None:
                raise NotYetError(
                    f"{own.name}: {own.scheme} is searched on the host and not for training; use int4 g32"
                )
            if own.input is not None and own.input.static:
                raise NotYetError(
                    f"{own.name}: JAX functions are trained with dynamic inputs in this version, not static"
                )
        self._function, self._about = function, dict(about)
        self._compiled = jax.jit(self._evaluated)
        self.__name__ = f"trained_{getattr(function, '__name__', 'function')}"

    def __call__(self, parameters: Any, *inputs: Any) -> Any:
        """Return what the function gives for rounded parameters and inputs."""
        return self._compiled(parameters, *inputs)

    def _evaluated(self, parameters: Any, *inputs: Any) -> Any:
        closed, shape = jax.make_jaxpr(self._function, return_shape=True)(parameters, *inputs)
        given = [self._weight(place, own) for place, own in enumerate(jax.tree.leaves(parameters))]
        found = _TRAINING(closed.jaxpr, closed.consts, [*given, *jax.tree.leaves(inputs)])
        return jax.tree.unflatten(jax.tree.structure(shape), [concrete(own) for own in found])

    def _weight(self, place: int, leaf: Array) -> Any:
        about = self._about.get(place)
        if about is None:
            return leaf
        return Weight.of(TrainedWeight(to_matrices(leaf.astype("float32"), about.layout), about))


_TRAINING = Interpreter(multiply)
