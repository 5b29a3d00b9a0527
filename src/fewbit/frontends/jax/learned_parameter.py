"""A parameter in training as a node of the tree of parameters: the float weight, and the ranges learned with it.

A pytree whose leaves are arrays, so that jax.grad and optimizers train all of them; its paths end in their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from fewbit.frontends.jax.packed_weight import Description
from fewbit.numerics.namespace import Array

#: The name of the float weight.
WEIGHT = "weight"


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, slots=True)
class LearnedParameter:
    """A float parameter beside the numbers that its range, and that of its input, is learned as.

    `arrays` are `weight`, of the shape and type that it has in the function, and by the gradient `scale` and
    `zero_point`, or `low` and `high`, float32 (stack..., groups...); of a static input `input_scale` and so on.
    """

    arrays: Mapping[str, Array]
    about: Description

    @property
    def weight(self) -> Array:
        """The float weight."""
        return self.arrays[WEIGHT]

    @property
    def ranges(self) -> dict[str, Array]:
        """What is learned beside it."""
        return {name: own for name, own in self.arrays.items() if name != WEIGHT}

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Array]], Any]:
        """Return the arrays by name, and the rest."""
        keys = tuple(sorted(self.arrays))
        return [(jax.tree_util.DictKey(key), self.arrays[key]) for key in keys], (keys, self.about)

    @classmethod
    def tree_unflatten(cls, rest: Any, arrays: Sequence[Array]) -> LearnedParameter:
        """Undo `tree_flatten_with_keys`."""
        keys, about = rest
        return cls(dict(zip(keys, arrays, strict=True)), about)


def is_learned(value: Any) -> bool:
    """Return whether a part of a tree is a parameter with learned ranges."""
    return isinstance(value, LearnedParameter)
