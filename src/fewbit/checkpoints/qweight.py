"""The tensors `qweight`, `qzeros` and `scales` of a weight in GPTQ and AWQ files: which there are, and their form."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from fewbit.checkpoints.linear_weights import SCALES, group_size
from fewbit.checkpoints.safetensors_file import numpy_type
from fewbit.errors import CheckpointError
from fewbit.interfaces import StoredTensor
from fewbit.schemes.scheme import Scheme

Arrays = Mapping[str, np.ndarray[Any, Any]]


def quantized_names(stored: Collection[str], suffixes: Iterable[str], weight: str) -> list[str]:
    """Return the layers that have a `qweight` among the names `stored`, each with all it needs.

    Args:
        stored: what the files hold.
        suffixes: the parts of a weight.
        weight: what one is called in an error, such as `an AWQ weight`.

    Raises:
        CheckpointError: a part that is missing, or a layer that is float as well.

    """
    names = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    for name in names:
        for suffix in ("qzeros", "scales"):
            if f"{name}.{suffix}" not in stored:
                raise CheckpointError(f"{name}.{suffix} is missing; {weight} needs it")
        if f"{name}.weight" in stored:
            raise CheckpointError(f"{name} has a weight beside its qweight; which counts is not said")
    found, parts = set(names), set(suffixes) - {"scales"}
    for full_name in stored:
        name, _, suffix = full_name.rpartition(".")
        if suffix in parts and name not in found:
            raise CheckpointError(f"{full_name} is part of a quantized weight, but {name}.qweight is missing")
    return names


def require_parts(arrays: Arrays, parts: Iterable[StoredTensor], shape: tuple[int, int], scheme: Scheme) -> None:
    """Raise `CheckpointError` unless groups divide a weight of `shape` (out, in), and its tensors are like `parts`."""
    size = group_size(scheme) or 1
    if shape[1] % size:
        raise CheckpointError(f"in_features {shape[1]} is not a multiple of its group size {size}")
    for part in parts:
        suffix = part.name.removeprefix(".")
        if suffix not in arrays:
            continue
        kind, found = (scheme.scale_type if suffix == "scales" else part.dtype), arrays[suffix]
        if found.dtype != numpy_type(str(kind)) or found.shape != part.shape:
            raise CheckpointError(
                f"{suffix} is {found.dtype}{list(found.shape)}; a weight of {list(shape)} under {scheme} has "
                f"{kind}{list(part.shape)}"
            )


def stored_scales(name: str, scale: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return float32 scales in the type that is written; raise `CheckpointError` unless it holds each exactly."""
    with np.errstate(over="ignore"):
        stored = scale.astype(numpy_type(SCALES))
    off = int((stored.astype(np.float32) != scale).sum())
    if off:
        raise CheckpointError(
            f"{name}: {SCALES} does not hold {off} of {scale.size} scales exactly (the least is "
            f"{np.abs(scale).min():.3g}); keep the layer, or write compressed-tensors with dtype='float32'"
        )
    return stored


def require_finite(scale: np.ndarray[Any, Any]) -> None:
    """Raise `CheckpointError` for scales that are no numbers; negative ones mirror the levels and are in order."""
    bad = int((~np.isfinite(scale)).sum())
    if bad:
        raise CheckpointError(f"{bad} of {scale.size} scales are NaN or infinite; the file is damaged")
