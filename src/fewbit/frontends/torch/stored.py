"""Tensors as what files hold: NumPy arrays, of ml_dtypes where NumPy has no such type."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbit.schemes.scheme import ScaleType


def to_stored(tensor: Tensor, storage_type: ScaleType) -> np.ndarray[Any, Any]:
    """Return `tensor` as a NumPy array, floats as `storage_type` (bfloat16 through ml_dtypes)."""
    import ml_dtypes

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype.is_floating_point:
        tensor = tensor.to(getattr(torch, storage_type))
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def from_stored(array: np.ndarray[Any, Any]) -> Tensor:
    """Return a NumPy array, possibly of an ml_dtypes type, as a tensor of its own memory."""
    return sharing(np.array(array))  # a copy: files are mapped read-only


def sharing(array: np.ndarray[Any, Any]) -> Tensor:
    """Return a tensor in the memory of `array`, which is written to as the tensor is."""
    if array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        raw = torch.from_numpy(array.view(f"u{array.dtype.itemsize}"))
        return raw.view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)
