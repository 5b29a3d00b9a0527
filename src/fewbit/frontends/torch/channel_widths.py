"""How wide layers and the norms between them are, and other widths for them: rows again, columns halved.

The columns of a convolution are its input channels, with all kernel positions: (out * positions, in).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbit.frontends.torch.channel_scaling import parameter_like, stored_weight
from fewbit.frontends.torch.convolution import Convolution
from fewbit.frontends.torch.layers import canonical_weight, module_class
from fewbit.frontends.torch.norm_folding import NORMS, is_known
from fewbit.transforms.link import Channels

#: What says how wide a module is.
_WIDTHS = ("in_features", "out_features", "nf", "nx", "in_channels", "out_channels", "num_features")
_LINEAR = ("Linear", "Conv1D")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_VECTORS = ("weight", "bias", "running_mean", "running_var")

Matrix = np.ndarray[Any, Any]


def is_plain(module: nn.Module) -> bool:
    """Whether each output channel is a row of its weight, and each input channel a column for every position."""
    return module_class(module) in _LINEAR or (type(module) in _CONVOLUTIONS and not in_groups(module))


def in_groups(module: nn.Module) -> bool:
    """Whether it is a convolution whose channels are tied to each other, such as a depthwise one."""
    convolution = Convolution.of(module)
    return convolution is not None and convolution.groups > 1


def norms_channels(module: nn.Module) -> bool:
    """Whether it normalizes each channel by numbers that it has, which can be there twice."""
    return isinstance(module, NORMS) and is_known(module)


def columns_of(module: nn.Module) -> tuple[Matrix, Channels]:
    """Return the weight as float64 (rows, in), and which output each of the rows is of."""
    matrix, positions = canonical_weight(module).double().cpu().numpy(), _positions(module)
    outputs = np.arange(len(matrix)).repeat(positions)
    return matrix.reshape(len(matrix), -1, positions).swapaxes(1, 2).reshape(len(outputs), -1), outputs


def set_columns(module: nn.Module, columns: Matrix) -> None:
    """Give a layer other columns, (rows, in)."""
    positions, width = _positions(module), columns.shape[1]
    matrix = columns.reshape(-1, positions, width).swapaxes(1, 2).reshape(-1, width * positions)
    _set_widths(module, ("in_features", "nx", "in_channels"), width)
    own: Any = module
    weight = torch.from_numpy(np.ascontiguousarray(matrix)).to(own.weight.device)
    module._parameters["weight"] = stored_weight(module, weight)


def repeat_channels(module: Any, sources: Channels) -> None:
    """Let output channel j of a layer, or channel j of a norm, be what channel `sources[j]` was."""
    rows = torch.from_numpy(sources).to(module.weight.device if module.weight is not None else None)
    if isinstance(module, NORMS):
        for name in _VECTORS:
            _repeat_vector(module, name, rows)
    else:
        weight = canonical_weight(module)[rows]
        _set_widths(module, ("out_features", "nf", "out_channels"), len(rows))
        module._parameters["weight"] = stored_weight(module, weight)
        _repeat_vector(module, "bias", rows)
    _set_widths(module, ("num_features",), len(rows))


def restorer(module: nn.Module) -> Callable[[], None]:
    """Return what gives a module back the numbers and widths that it has now."""
    vectors = {name: own for name, own in module._buffers.items() if name in _VECTORS}
    widths = {name: getattr(module, name) for name in _WIDTHS if hasattr(module, name)}
    return partial(_restore, module, {**module._parameters, **vectors, **widths})


def _positions(module: nn.Module) -> int:
    convolution = Convolution.of(module)
    return int(np.prod(convolution.kernel)) if convolution else 1


def _repeat_vector(module: nn.Module, name: str, rows: Tensor) -> None:
    own = module._parameters.get(name)
    if own is not None:
        module._parameters[name] = parameter_like(own, own.detach()[rows])
    elif (held := module._buffers.get(name)) is not None:
        module._buffers[name] = held[rows]


def _set_widths(module: nn.Module, names: tuple[str, ...], width: int) -> None:
    for name in names:
        if hasattr(module, name):
            setattr(module, name, width)


def _restore(module: nn.Module, state: dict[str, Any]) -> None:
    for name, value in state.items():
        setattr(module, name, value)
