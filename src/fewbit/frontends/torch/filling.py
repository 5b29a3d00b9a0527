"""Numbers for a module that was built without any: they come one tensor at a time, and can be let go of again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from fewbit.frontends.torch.stored import sharing


def names_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return for the name of every stored tensor the names of that very tensor, its own among them."""
    alike: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        alike.setdefault(id(tensor), []).append(name)
    return {name: tuple(names) for names in alike.values() for name in names}


def fill(model: nn.Module, names: Iterable[str], array: np.ndarray[Any, Any]) -> None:
    """Put `array`, floats as float32, into the parameter or buffer of `model` under `names`; its memory may be used."""
    tensor = sharing(array)
    tensor = tensor.to(torch.float32) if tensor.dtype.is_floating_point else tensor
    parameter = nn.Parameter(tensor, requires_grad=tensor.dtype.is_floating_point)
    for name in names:
        parent, _, attribute = name.rpartition(".")
        module = model.get_submodule(parent)
        if attribute in module._parameters:
            module._parameters[attribute] = parameter
        else:
            module._buffers[attribute] = tensor


def without_weight(module: nn.Module) -> None:
    """Let go of the numbers of a layer's weight; its shape and type stay."""
    weight = module.get_parameter("weight")
    module.weight = nn.Parameter(weight.detach().to("meta"), requires_grad=weight.requires_grad)
