"""A float parameter that is rounded at every use: by the range of its numbers at each step, or by one kept or learned.

w' = fake_quantize(w), or what the gradient of the training makes of w and its range; both are what codes stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax

from fewbit.activation import Activation
from fewbit.frontends.jax.packed_weight import INPUT, Description, PackedWeight
from fewbit.interfaces.gradient import Gradient
from fewbit.numerics.groups import beside_boxes, counts, merge, split
from fewbit.numerics.namespace import Array, to_float32
from fewbit.numerics.rounding import flushed
from fewbit.qtensor import QTensor, fake_quantize, quantize


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, slots=True)
class TrainedWeight:
    """A parameter as float matrices (..., out, in), or what is left of them, with its ranges by name.

    Those of the weight are (..., groups of rows, groups of columns), those of a static input `input_scale` and so on.
    """

    values: Array
    ranges: Mapping[str, Array]
    about: Description
    gradient: Gradient

    @property
    def stack(self) -> tuple[int, ...]:
        """The axes that are left of the stack."""
        return tuple(self.values.shape[:-2])

    def matrices(self) -> Array:
        """Return the matrices rounded; gradients reach what is learned."""
        function: Any = TrainedWeight.rounded
        for _ in self.stack:
            function = jax.vmap(function)
        rounded: Array = function(self)
        return rounded

    def rounded(self) -> Array:
        """Return the matrix rounded, nothing being left of the stack."""
        scheme, own = self.about.scheme, self._of_weight()
        if not own:
            straight: Array = fake_quantize(self.values, scheme)
            return straight
        box = scheme.granularity.box(self.about.layout.matrix)
        boxes = self.gradient(split(flushed(self.values), box), own, scheme.grid, prod(box))
        return merge(boxes, self.about.layout.matrix)

    def qtensor(self) -> QTensor:
        """Return the codes of the matrix that `rounded` gives the values of; without gradients."""
        scheme, own = self.about.scheme, self._of_weight()
        if not own:
            return quantize(self.values, scheme)
        shape = self.about.layout.matrix
        box = scheme.granularity.box(shape)
        number = counts(shape, box)
        scale, zero = self.gradient.settled(own, scheme.grid)
        codes = scheme.grid.codes(split(to_float32(self.values), box), scale, zero)
        stored = None if zero is None else scheme.grid.integer.to_codes(zero.reshape(number))
        return QTensor(codes=merge(codes, shape), scale=scale.reshape(number), zero_point=stored, scheme=scheme)

    def activation(self) -> Activation:
        """Return how the input is rounded, without gradients, nothing being left of the stack."""
        scheme, own = self.about.input, self._of_input()
        assert scheme is not None
        if not own:
            return Activation(scheme=scheme)
        scale, zero = self.gradient.settled(own, scheme.grid)
        return Activation(scheme=scheme, scale=scale, zero_point=zero)

    def input_rounded(self, values: Array) -> Array:
        """Return rows (tokens..., columns) as values of their codes; gradients reach a range that is learned."""
        scheme, own = self.about.input, self._of_input()
        assert scheme is not None
        if not own:
            return Activation(scheme=scheme).rounded(values)
        return self.gradient(flushed(values), own, scheme.grid, _sharing(values, next(iter(own.values()))))

    def packed(self) -> PackedWeight:
        """Return the matrix as codes, with how its input is rounded."""
        given = self.activation() if self.about.input is not None else None
        return PackedWeight.matrix_of(self.qtensor(), self.about, given)

    def with_input(self, change: Callable[[Array], Array]) -> TrainedWeight:
        """Return a copy with `change` applied to the numbers of the input."""
        own = {name: change(part) if name.startswith(INPUT) else part for name, part in self.ranges.items()}
        return replace(self, ranges=own)

    def _of_weight(self) -> dict[str, Array]:
        return {name: beside_boxes(own) for name, own in self.ranges.items() if not name.startswith(INPUT)}

    def _of_input(self) -> dict[str, Array]:
        return {name.removeprefix(INPUT): own for name, own in self.ranges.items() if name.startswith(INPUT)}

    def tree_flatten(self) -> tuple[Any, Any]:
        """Return arrays, and the rest."""
        return (self.values, dict(self.ranges)), (self.about, self.gradient)

    @classmethod
    def tree_unflatten(cls, rest: Any, arrays: Any) -> TrainedWeight:
        """Undo `tree_flatten`."""
        return cls(*arrays, *rest)


def _sharing(values: Array, own: Array) -> int:
    """Return how many numbers of one sample have a range in common: LSQ leaves the size of a batch out."""
    samples = values.shape[0] if values.ndim > 1 else 1
    # Ranges of as many axes as the numbers are those of each sample, by its expert.
    each = own.shape[1:] if 1 < values.ndim == own.ndim else own.shape
    shared: int = prod(values.shape) // (samples * max(1, prod(each)))
    return max(1, shared)
