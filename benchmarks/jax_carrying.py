"""Numbers of a PyTorch model put into the tree of a JAX model, by what PyTorch calls each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fewbit.frontends.jax.parameters import named

#: What Flax calls a weight; that of a product is (in, out) there.
_WEIGHTS = ("kernel", "scale", "embedding", "weight")


@dataclass(frozen=True)
class Carried:
    """A JAX model with the numbers of a PyTorch model."""

    #: Of parameters and inputs.
    function: Callable[..., Any]
    parameters: Any
    #: The name of a layer in PyTorch by its name here.
    torch_name: Callable[[str], str]

    def layers(self, tree: Any, leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
        """Return the leaves of a tree like `parameters` that are weights, by PyTorch's names of the layers."""
        found = {}
        for path, own in jax.tree_util.tree_flatten_with_path(tree, is_leaf=leaf)[0]:
            layer, _, last = named(path).rpartition(".")
            if last in _WEIGHTS:
                found[self.torch_name(layer)] = own
        return found


def carried(shapes: Any, numbers: Mapping[str, Any], torch_name: Callable[[str], str]) -> Any:
    """Return the tree of `shapes` with the numbers of a state_dict.

    Raises:
        ValueError: an array has another shape.

    """

    def number(path: Any, leaf: Any) -> Any:
        layer, _, last = named(path).rpartition(".")
        values = numbers[f"{torch_name(layer)}.{'weight' if last in _WEIGHTS else last}"].detach().float().numpy()
        values = jnp.asarray(values.T if last == "kernel" else values)
        if values.shape != leaf.shape:
            raise ValueError(f"{named(path)} is {leaf.shape}, its numbers are {values.shape}")
        return values

    return jax.tree_util.tree_map_with_path(number, shapes)
