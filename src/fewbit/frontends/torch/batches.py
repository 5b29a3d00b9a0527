"""Batches of NumPy arrays as tensors: where the model is, floats in the type of its parameters; what graphs take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbit.frontends.torch.calls import Call, tensors_in


def adopted(model: nn.Module, batch: Any) -> Any:
    """Return `batch`, an array or a tuple or dict of them, with NumPy arrays as tensors; anything else as it is."""
    parameter = next((own for own in model.parameters() if own.dtype.is_floating_point), None)
    if isinstance(batch, np.ndarray):
        return _tensor(batch, parameter)
    if type(batch) is dict and any(isinstance(value, np.ndarray) for value in batch.values()):
        return {name: adopted(model, value) for name, value in batch.items()}
    if type(batch) is tuple and any(isinstance(value, np.ndarray) for value in batch):
        return tuple(adopted(model, value) for value in batch)
    return batch


def fed(batch: Any) -> Any:
    """Return the tensors of a batch, by name or in order: whatever else a module is given is part of its graph."""
    call = Call.of(batch)
    named = {name: value for name, value in call.kwargs.items() if isinstance(value, Tensor)}
    return named or tuple(tensors_in((call.args, call.kwargs)))


def _tensor(numbers: np.ndarray[Any, Any], parameter: Tensor | None) -> Tensor:
    """Return a copy: a module may write into what it is given, and the array may be read again."""
    if parameter is None:
        return torch.tensor(numbers)
    floats = numbers.dtype.kind == "f"
    return torch.tensor(numbers, dtype=parameter.dtype if floats else None, device=parameter.device)
