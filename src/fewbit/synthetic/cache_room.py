"""Room for keys and values of a text that a model writes, taken once for its whole length.

The layers of transformers' `DynamicCache` are copied into larger ones with each token: a third of the time of 512
tokens, and holes in the heap of several times the size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


class _Room:
    """What a layer of a cache is updated by: it writes behind what is there."""

    def __init__(self, layer: Any, length: int) -> None:
        self._layer = layer
        self._keys, self._values = (_grown(held, length) for held in (layer.keys, layer.values))

    def __call__(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add `keys` and `values` (rows, heads, tokens, size), and return all that there are."""
        layer, start = self._layer, self._layer.keys.shape[-2]
        stop = start + keys.shape[-2]
        self._keys[..., start:stop, :] = keys
        self._values[..., start:stop, :] = values
        layer.keys, layer.values = self._keys[..., :stop, :], self._values[..., :stop, :]
        return layer.keys, layer.values


def take_room(cache: Any, length: int) -> None:
    """Let the layers of `cache` that would be copied for each token hold `length` tokens; others stay as they are.

    `cache` is what a causal language model of transformers returned, and holds a token at least.
    """
    from transformers.cache_utils import DynamicLayer

    for layer in getattr(cache, "layers", ()):
        if type(layer) is DynamicLayer:  # its subclasses hold a window, or less than all tokens
            layer.update = _Room(layer, length)


def _grown(held: Tensor, length: int) -> Tensor:
    """Return a tensor for `length` tokens that begins with those of `held`."""
    room = held.new_empty(*held.shape[:-2], length, held.shape[-1])
    room[..., : held.shape[-2], :] = held
    return room
