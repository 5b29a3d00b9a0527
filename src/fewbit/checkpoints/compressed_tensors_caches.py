"""Fixed ranges of key-value caches as compressed-tensors stores them: `k_scale` and `v_scale` beside each attention.

By tensor one number, by head (heads, 1, 1), called `attn_head`; asymmetric ones with `k_zero_point`, `v_zero_point`.
All attentions have the scheme that `kv_cache_scheme` says. Source: compressed-tensors 0.20, `initialize_attn_qparams`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fewbit.activation import Activation
from fewbit.checkpoints.compressed_tensors_form import entry, read_entry
from fewbit.checkpoints.compressed_tensors_layer import Arrays, alike, require_within
from fewbit.checkpoints.json_object import require_idle
from fewbit.checkpoints.safetensors_file import numpy_type
from fewbit.errors import CheckpointError
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import E4M3
from fewbit.formats.scale_type import scale_fits
from fewbit.interfaces import StoredTensor
from fewbit.numerics.namespace import SMALLEST_NORMAL, to_numpy
from fewbit.schemes.granularity import Granularity, PerChannel, PerTensor
from fewbit.schemes.scheme import ScaleType, Scheme

#: Rounding of the keys and of the values, by the name of the attention.
Caches = Mapping[str, tuple[Activation, Activation]]
_SIDES = ("k", "v")
SUFFIXES = tuple(f"{side}_{part}" for side in _SIDES for part in ("scale", "zero_point"))
_BY_HEAD = "attn_head"
#: Keys of the entry that change what a runtime computes, with the values under which they do not.
_IDLE: dict[str, tuple[Any, ...]] = {
    "dynamic": (None, False),
    "group_size": (None,),
    "actorder": (None, False),
    "block_structure": (None,),
    "scale_dtype": (None,),
    "zp_dtype": (None, "torch.int8", "int8", "torch.float8_e4m3fn"),
}


def cache_problem(scheme: Scheme) -> str | None:
    """Return why a cache rounded by `scheme` has no place in this layout, or `None`."""
    form, remedy = scheme.format, "use 'int8 tensor static sym' or 'e4m3 tensor static'"
    if not scheme.static:
        return f"compressed-tensors stores fixed ranges of caches, and '{scheme}' finds them as it runs; {remedy}"
    if not ((isinstance(form, Int) and form.signed and form.bits <= 8) or form == E4M3):
        return f"compressed-tensors has no layout for a cache in '{scheme}'; {remedy}"
    if isinstance(form, Int) and form.narrow:
        return f"compressed-tensors rounds caches to the full range, and '{scheme}' is narrow; leave out 'narrow'"
    if scheme.granularity not in (PerTensor(), PerChannel()):
        return f"compressed-tensors ranges caches by tensor or head, not as '{scheme}' says; {remedy}"
    return None


def cache_entry(caches: Caches) -> dict[str, Any] | None:
    """Return the `kv_cache_scheme` of the configuration."""
    if not caches:
        return None
    scheme = _scheme_of(caches)
    by_head = scheme.granularity == PerChannel()
    return {**entry(scheme), "strategy": _BY_HEAD if by_head else "tensor", "dynamic": False}


def stored_caches(caches: Caches, storage_type: ScaleType) -> list[StoredTensor]:
    """Return what stands in the file for the ranges of `caches`."""
    parts = []
    for name, sides in caches.items():
        for side, own in zip(_SIDES, sides, strict=True):
            shape = _stored_shape(own)
            parts.append(StoredTensor(f"{name}.{side}_scale", storage_type, shape))
            if not own.scheme.symmetric:
                parts.append(StoredTensor(f"{name}.{side}_zero_point", "int8", shape))
    return parts


def encoded_caches(caches: Caches, storage_type: ScaleType) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of `stored_caches` by their full name.

    Raises:
        CheckpointError: scales that `storage_type` does not hold, or schemes that differ.

    """
    if caches:
        _scheme_of(caches)
    arrays = {}
    for name, sides in caches.items():
        for side, own in zip(_SIDES, sides, strict=True):
            scale, shape = to_numpy(own.scale), _stored_shape(own)
            if not scale_fits(scale, storage_type).all():
                raise CheckpointError(
                    f"{name}: {storage_type} does not hold the scales of its cache exactly; "
                    f"make the cache with key_value_cache(..., dtype={storage_type!r})"
                )
            arrays[f"{name}.{side}_scale"] = scale.reshape(shape).astype(numpy_type(storage_type))
            if own.zero_point is not None:
                arrays[f"{name}.{side}_zero_point"] = to_numpy(own.zero_point).reshape(shape).astype(np.int8)
    return arrays


def read_cache_scheme(said: Any, stored: Mapping[str, StoredTensor]) -> dict[str, Scheme]:
    """Return the scheme of the cache of each attention, for the `kv_cache_scheme` of a configuration.

    Raises:
        CheckpointError: an entry that is none, ranges without an entry, or an attention that lacks a part.
        NotYetError: dynamic caches and those of later versions.

    """
    names = dict.fromkeys(_names(stored))
    if said in (None, {}):
        for name in names:
            raise CheckpointError(f"{name} has a range of its cache, but quantization_config has no kv_cache_scheme")
        return {}
    if not isinstance(said, dict):
        raise CheckpointError(f"kv_cache_scheme of quantization_config is no object but {said!r:.80}")
    if not names:
        raise CheckpointError("quantization_config has a kv_cache_scheme, but no attention has a k_scale")
    require_idle(said, _IDLE, "kv_cache_scheme")
    given = {"strategy": "tensor", **said}
    granularities: dict[str, Granularity] = {"tensor": PerTensor(), _BY_HEAD: PerChannel()}
    found = {}
    for name in names:
        symmetric = said.get("symmetric", True)
        for side in _SIDES:
            for part, needed in {"scale": True, "zero_point": not symmetric}.items():
                if (f"{name}.{side}_{part}" in stored) != needed:
                    how = "is missing; needed by" if needed else "has no meaning beside"
                    raise CheckpointError(f"{name}.{side}_{part} {how} the kv_cache_scheme of quantization_config")
        scale_type = stored[f"{name}.k_scale"].dtype
        found[name] = read_entry(given, granularities, "kv_cache_scheme", scale_type=scale_type, static=True)
    return found


def decoded_caches(arrays: Arrays, schemes: Mapping[str, Scheme]) -> dict[str, tuple[Activation, Activation]]:
    """Undo `encoded_caches`; raises `CheckpointError` for shapes, types or values that no fixed range has."""
    return {name: (_side(arrays, name, "k", own), _side(arrays, name, "v", own)) for name, own in schemes.items()}


def is_of_cache(full_name: str, schemes: Mapping[str, Scheme]) -> bool:
    """Whether a tensor is a part of the range of a cache."""
    name, _, suffix = full_name.rpartition(".")
    return name in schemes and suffix in SUFFIXES


def _names(stored: Iterable[str]) -> list[str]:
    return [name.rpartition(".")[0] for name in stored if name.rpartition(".")[2] in SUFFIXES]


def _scheme_of(caches: Caches) -> Scheme:
    """Return the scheme that all have; raises `CheckpointError` where they differ."""
    schemes = {own.scheme for sides in caches.values() for own in sides}
    if len(schemes) != 1:
        raise CheckpointError(f"compressed-tensors has one scheme for all caches, not {', '.join(map(str, schemes))}")
    return schemes.pop()


def _stored_shape(own: Activation) -> tuple[int, ...]:
    assert own.scale is not None  # `cache_problem` refuses dynamic ones
    return (1,) if own.scheme.granularity == PerTensor() else (int(own.scale.shape[0]), 1, 1)


def _side(arrays: Arrays, name: str, side: str, scheme: Scheme) -> Activation:
    scale = arrays[f"{name}.{side}_scale"]
    by_head = scheme.granularity == PerChannel()
    heads = scale.shape[0] if by_head and scale.ndim else 1
    shape, inner = ((heads, 1, 1), (heads,)) if by_head else ((1,), ())
    numbers = {}
    for part, kind in {"scale": scheme.scale_type, "zero_point": None if scheme.symmetric else "int8"}.items():
        if kind is None:
            continue
        found = arrays[f"{name}.{side}_{part}"]
        if found.dtype != numpy_type(kind) or not alike(found.shape, shape) or heads < 1:
            raise CheckpointError(
                f"{name}: {side}_{part} is {found.dtype}{list(found.shape)}; a cache in '{scheme}' has "
                f"{kind}{['heads', 1, 1] if by_head else [1]}"
            )
        numbers[part] = found.astype(np.float32).reshape(inner)
    values, zero = numbers["scale"], numbers.get("zero_point")
    if not (np.isfinite(values) & (values >= SMALLEST_NORMAL)).all():
        raise CheckpointError(f"{name}: its {side}_scale is {values.min():.3g}, not a positive number; it is damaged")
    if zero is not None and isinstance(scheme.format, Int):
        require_within(zero, scheme.format, f"{name}: zero points of its cache")
    return Activation(scheme=scheme, scale=values, zero_point=zero)
