"""A tree of parameters, quantized ones among them, as arrays by name, and back into the tree of another's shapes.

A quantized parameter `a.kernel` is `a.kernel.codes`, `a.kernel.scale` and so on, and `a.kernel.scheme`, its notation as
UTF-8 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewbit.errors import CheckpointError
from fewbit.frontends.jax.packed_weight import Description, is_packed
from fewbit.frontends.jax.parameters import named
from fewbit.schemes.notation import input_scheme_to_text


def to_arrays(parameters: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a tree by name.

    Raises:
        CheckpointError: a random key is among them.

    """
    found: dict[str, np.ndarray[Any, Any]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(parameters, is_leaf=is_packed)[0]:
        name = named(path)
        if is_packed(leaf):
            found |= {f"{name}.{key}": np.asarray(own) for key, own in leaf.arrays.items()}
            found[f"{name}.scheme"] = _notation(leaf.about)
        elif jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise CheckpointError(f"{name} is a random key, which files do not hold; leave it out of the tree")
        else:
            found[name] = np.asarray(leaf)
    return found


def from_arrays(arrays: Mapping[str, np.ndarray[Any, Any]], like: Any) -> Any:
    """Return the tree of `like`, of arrays or their shapes, with the numbers of `arrays`.

    Raises:
        CheckpointError: an array is missing, too many, or of another shape, type or scheme.

    """
    left = dict(arrays)

    def take(name: str, own: Any) -> Any:
        found = left.pop(name, None)
        if found is None:
            raise CheckpointError(f"the file has no {name}; was it written from other rules?")
        if tuple(found.shape) != tuple(own.shape) or found.dtype != own.dtype:
            raise CheckpointError(
                f"{name} is {found.dtype}{list(found.shape)} in the file, not {own.dtype}{list(own.shape)}"
            )
        return jnp.asarray(found)

    def restored(path: Any, leaf: Any) -> Any:
        name = named(path)
        if not is_packed(leaf):
            return take(name, leaf)
        wanted, found = _notation(leaf.about), left.pop(f"{name}.scheme", None)
        if found is None or found.tobytes() != wanted.tobytes():
            text = "float" if found is None else repr(found.tobytes().decode(errors="replace"))
            raise CheckpointError(f"{name} is {text:.200} in the file, not {wanted.tobytes().decode()!r}")
        return type(leaf)({key: take(f"{name}.{key}", own) for key, own in leaf.arrays.items()}, leaf.about)

    tree = jax.tree_util.tree_map_with_path(restored, like, is_leaf=is_packed)
    if left:
        raise CheckpointError(f"the file also has {', '.join(sorted(left)[:5])}, which the tree does not")
    return tree


def _notation(about: Description) -> np.ndarray[Any, Any]:
    text = str(about.scheme) if about.input is None else f"{about.scheme}, input {input_scheme_to_text(about.input)}"
    return np.frombuffer(text.encode(), np.uint8)
