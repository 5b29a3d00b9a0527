"""Tensors as what files hold: the float ones by name, and NumPy arrays, of ml_dtypes where NumPy has no such type."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbit.schemes.scheme import ScaleType


def floats_called(model: nn.Module, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored float tensors of `model` that are called in `names`."""
    direct = {name: tensor for name in names if (tensor := _hanging(model, name)) is not None}
    # A state_dict packs every quantized layer anew.
    rest = model.state_dict(keep_vars=True) if len(direct) < len(names) else {}
    for name in names:
        tensor = direct.get(name, rest.get(name))
        if tensor is not None and tensor.dtype.is_floating_point:
            yield name, tensor.detach()


def _hanging(model: nn.Module, name: str) -> Tensor | None:
    """Return the parameter or buffer that hangs in `model` under `name`; `None`: a module stores it in its own way."""
    parent, _, attribute = name.rpartition(".")
    try:
        module = model.get_submodule(parent)
    except AttributeError:
        return None
    found = module._parameters.get(attribute)
    return module._buffers.get(attribute) if found is None else found


def pieces(tensor: Tensor) -> Sequence[Tensor]:
    """Return views of a few million numbers that make up `tensor`."""
    return torch.split(tensor.view(-1), 1 << 22) if tensor.is_contiguous() else [tensor]


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
