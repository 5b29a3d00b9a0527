"""Weights and biases of a module's layers, with a check that every number of them is finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewbit.errors import NonFiniteError
from fewbit.frontends.torch.layers import canonical_weight

#: A range of twice this, divided by one step, still has a float32.
_LARGEST = 2.0**120


def finite_weight(model: nn.Module, name: str) -> Tensor:
    """Return the weight of the layer called `name` as (out, in); raises `NonFiniteError` for NaN and infinity in it."""
    weight = canonical_weight(model.get_submodule(name))
    if not weight.numel():
        return weight
    largest = float(torch.stack(torch.aminmax(weight)).abs().max())  # NaN where one is among them
    if not math.isfinite(largest):
        bad = int((~torch.isfinite(weight)).sum())
        raise NonFiniteError(f"{name}: {bad} of {weight.numel()} weights are NaN or infinite; repair or keep it")
    if largest > _LARGEST:
        raise NonFiniteError(
            f"{name}: a weight of magnitude {largest:.3g} would overflow float32 arithmetic; repair or keep it"
        )
    return weight


def finite_bias(model: nn.Module, name: str) -> Tensor:
    """Return the bias of a layer that has one, (out,); raises `NonFiniteError` for NaN and infinity in it."""
    bias = model.get_submodule(name).bias
    assert isinstance(bias, Tensor)
    if bad := int((~torch.isfinite(bias)).sum()):
        raise NonFiniteError(f"{name}.bias: {bad} of its numbers are NaN or infinite; repair them, or keep the layer")
    return bias.detach()
