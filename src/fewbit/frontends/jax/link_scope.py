"""A function as transforms see it: its links, statistics of what its layers get, weights to be rescaled.

Parameters are copied as they change; the tree that was given stays as it is. See `fewbit.transforms.scope.Scope`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from fewbit.frontends.jax.links import Fold, Leaves, find_folds, matrix_name
from fewbit.frontends.jax.observation import Observation
from fewbit.frontends.jax.packed_weight import Description
from fewbit.frontends.jax.parameters import Function, Parameter
from fewbit.frontends.jax.view import to_matrices
from fewbit.known_output import KnownOutput
from fewbit.transforms.channel_digits import Numbers
from fewbit.transforms.link import Factors, Link


class LinkScope:
    """The whole of a function, float still; a layer is a matrix of a parameter, `blocks.up[1]` of a stack."""

    def __init__(
        self,
        function: Callable[..., Any],
        parameters: Any,
        batches: Sequence[tuple[Any, ...]],
        found: Function,
        about: Mapping[int, Description],
    ) -> None:
        self._function, self._batches, self._about = function, batches, about
        self._first, self._tree = jax.tree.flatten(parameters)
        self._leaves = Leaves(self._first, found.names)
        #: The parameter of each layer, and its place in the stack.
        self._layers = {name: (own, place) for own in found.parameters for place, name in enumerate(layer_names(own))}
        #: What BatchNorms tell of the outputs of layers.
        self.known: Mapping[str, KnownOutput] = {}

    @property
    def name(self) -> str:
        """Empty: it has no blocks."""
        return ""

    @property
    def links(self) -> tuple[Link, ...]:
        """What an exact fold has proven."""
        return tuple(fold.link for fold in self._folds)

    @cached_property
    def _folds(self) -> tuple[Fold, ...]:
        return find_folds(self._function, self.parameters(), self._batches[0], self._leaves.names)

    @property
    def layers(self) -> Collection[str]:
        """The quantizable layers; norms are not among them."""
        return self._layers

    @property
    def experts(self) -> Collection[str]:
        """None: which experts a token goes to is not told apart."""
        return ()

    def output_magnitudes(self, layer: str) -> Factors:
        """Return the largest magnitude of the weights of each output channel, (outputs,)."""
        found: Factors = np.abs(self.weight(layer)).max(axis=1).astype(np.float64)
        return found

    def input_magnitudes(self, layer: str) -> Factors:
        """Return the largest magnitude of the weights that read each input channel, (inputs,)."""
        found: Factors = np.abs(self.weight(layer)).max(axis=0).astype(np.float64)
        return found

    def weight(self, layer: str) -> Numbers:
        """Return the weight of a layer as it now is, float32 (out, in)."""
        own, place = self._layers[layer]
        matrices = to_matrices(self._leaves.array(own.place), own.layout)
        found: Numbers = matrices[np.unravel_index(place, own.layout.shape[:-2])].astype(np.float32)
        return found

    def statistics(self, wanted: Mapping[str, Sequence[str]]) -> Mapping[str, Mapping[str, Any]]:
        """Return statistics by name of what layers are given in the float function, of those that an input reaches."""
        names: dict[str, Sequence[str]] = {}
        for layer, own in wanted.items():
            name = self._layers[layer][0].name
            names[name] = tuple(dict.fromkeys((*names.get(name, ()), *own)))
        seen = Observation(names)
        for batch in self._batches:
            seen.run(self._function, self.parameters(), batch, self._about)
        places = {layer: (self._layers[layer][0].name, self._layers[layer][1]) for layer in wanted}
        return {layer: seen.seen[place] for layer, place in places.items() if place in seen.seen}

    def rescale(self, link: Link, factors: Factors) -> Factors:
        """Divide the channels of the link's producer by about `factors`; return by what, to the last bit."""
        fold = next(fold for fold in self._folds if fold.link is link)
        return fold.apply(self._leaves, factors)

    def absorb(self, link: Link, shift: Factors) -> str:  # noqa: ARG002  # the signature of `Scope`
        """Return why nothing was moved: a function has no place for a bias that it does not add."""
        return "a JAX function adds the biases that it adds"

    def restorer(self) -> Callable[[], None]:
        """Return what has nothing to give back: the tree that was given is as it was."""
        return lambda: None

    def parameters(self) -> Any:
        """Return the tree as it now is; what did not change is what was given."""
        leaves = list(self._first)
        for place, own in self._leaves.changed.items():
            leaf = leaves[place]
            # A copy: on a CPU the device array may share what is changed later.
            copy = own.copy()
            leaves[place] = jax.device_put(copy, leaf.sharding) if isinstance(leaf, jax.Array) else copy
        return jax.tree.unflatten(self._tree, leaves)


def layer_names(parameter: Parameter) -> list[str]:
    """Return the names of the matrices of a parameter, in the order of its stack."""
    stack = parameter.layout.shape[:-2]
    return [matrix_name(parameter.name, stack, index) for index in np.ndindex(stack)]
