"""Weights and biases under which a module puts out divided channels, or takes multiplied ones for what they were.

Rows: W / f, b / f. Columns: W diag(f). A norm's gain: g / f, or (1 + g) / f - 1 where it adds 1 to what it stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fewbit.frontends.torch.convolution import Convolution
from fewbit.frontends.torch.layers import canonical_weight, module_class
from fewbit.transforms.link import Factors

#: New parameters by name, of each module that has some.
Changes: TypeAlias = list[tuple[nn.Module, Mapping[str, nn.Parameter]]]


class Form(Enum):
    """How the parameters of a module scale its output channels."""

    ROWS = "rows of a matrix"
    GAIN = "a gain"
    GAIN_BESIDE_ONE = "a gain to which 1 is added"


def is_norm(module: nn.Module) -> bool:
    """Whether it may multiply channels by a vector that it stores: a norm of any class, or a bare scale."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 1 and module_class(module) is None


def forms(module: nn.Module) -> tuple[Form, ...]:
    """Return the forms that its output channels may have; which one it is shows when it is tried."""
    return (Form.GAIN, Form.GAIN_BESIDE_ONE) if is_norm(module) else (Form.ROWS,)


@torch.no_grad()
def with_divided_outputs(module: Any, factors: Tensor, form: Form) -> dict[str, nn.Parameter]:
    """Return the parameters with which output channel c is divided by `factors[c]`, float64 (outputs,)."""
    changed = {}
    if form is Form.ROWS:
        changed["weight"] = stored_weight(module, canonical_weight(module).double() / factors[:, None])
    else:
        own = 1.0 if form is Form.GAIN_BESIDE_ONE else 0.0
        changed["weight"] = parameter_like(module.weight, (module.weight.double() + own) / factors - own)
    if getattr(module, "bias", None) is not None:
        changed["bias"] = parameter_like(module.bias, module.bias.double() / factors)
    return changed


@torch.no_grad()
def with_multiplied_inputs(module: Any, factors: Tensor) -> dict[str, nn.Parameter]:
    """Return the weight of a layer whose input channel j is multiplied by `factors[j]`, float64 (inputs,)."""
    apart, shape = by_input(module)
    scaled = apart.double() * factors.reshape(len(apart), 1, -1, 1)
    return {"weight": stored_weight(module, scaled.reshape(shape))}


@torch.no_grad()
def input_magnitudes(module: nn.Module) -> Factors:
    """Return the largest magnitude of the weights that read each input channel, float64 (inputs,)."""
    apart, _ = by_input(module)
    found: Factors = apart.abs().amax((1, 3)).flatten().double().cpu().numpy()
    return found


def by_input(module: nn.Module) -> tuple[Tensor, torch.Size]:
    """Return the weight as (groups, outputs of a group, inputs of a group, positions), and its shape as a matrix.

    Rows of a group read the input channels of that group, each at every kernel position.
    """
    matrix, convolution = canonical_weight(module), Convolution.of(module)
    groups = convolution.groups if convolution else 1
    inputs = convolution.in_channels // groups if convolution else matrix.shape[1]
    return matrix.reshape(groups, -1, inputs, matrix.shape[1] // inputs), matrix.shape


def exchange(changes: Iterable[tuple[nn.Module, Mapping[str, nn.Parameter]]]) -> Changes:
    """Give modules these parameters, and return those that they had."""
    before: Changes = []
    for module, parameters in changes:
        before.append((module, {name: module._parameters[name] for name in parameters}))  # type: ignore[misc]
        for name, parameter in parameters.items():
            module._parameters[name] = parameter
    return before[::-1]


def stored_weight(module: Any, matrix: Tensor) -> nn.Parameter:
    """Return (out, in) as the module stores it."""
    convolution = Convolution.of(module)
    weight = convolution.weight(matrix) if convolution else matrix
    return parameter_like(module.weight, weight.T if module_class(module) == "Conv1D" else weight)


def parameter_like(like: Tensor, values: Tensor) -> nn.Parameter:
    """Return `values` as a parameter of the type that `like` has."""
    layout = torch.preserve_format if values.is_contiguous() or values.ndim > 3 else torch.contiguous_format
    made = values.to(like.dtype).clone(memory_format=layout)
    return nn.Parameter(made, requires_grad=like.requires_grad)
