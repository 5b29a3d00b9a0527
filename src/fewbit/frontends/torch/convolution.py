"""Convolutions as matrix products: what distinguishes one from another, its weight as (out, in), its input as rows.

A convolution of one group is `patches(input) @ weight.T`; the columns are the input channels, each with its kernel
positions in order, those of several groups side by side. The weight (in, out / groups, *kernel) of a transposed one is
put into the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewbit.frontends.torch.convolution_call import caught, each
from fewbit.frontends.torch.own_forward import own_padding
from fewbit.kernels.window import Window

_DIMENSIONS: dict[type[nn.Module], int] = {
    nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3,
    nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3,
}  # fmt: skip
_MODULES: dict[tuple[bool, int], Any] = {("Transpose" in kind.__name__, n): kind for kind, n in _DIMENSIONS.items()}
_RUN: dict[tuple[bool, int], Any] = {
    (False, 1): functional.conv1d, (False, 2): functional.conv2d, (False, 3): functional.conv3d,
    (True, 1): functional.conv_transpose1d, (True, 2): functional.conv_transpose2d,
    (True, 3): functional.conv_transpose3d,
}  # fmt: skip
#: Memory formats by the number of spatial axes.
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """Everything about a convolution but its numbers; sizes by spatial axis."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    #: Zeros, or copies by `padding_mode`, before and behind each spatial axis.
    padding: tuple[tuple[int, int], ...]
    padding_mode: str
    #: What a transposed convolution adds behind each axis of its output.
    output_padding: tuple[int, ...]
    #: Whether the weight has its channels last in memory: outputs then have them so too, whatever inputs have.
    last_in_memory: bool = False
    #: A module of a subclass, without its numbers: its own `forward` runs, on the weight that it is given.
    own: nn.Module | None = None

    @classmethod
    def of(cls, module: nn.Module) -> Convolution | None:
        """Return the convolution that `module` is, or `None`; a subclass may pad, scale or normalize as it likes."""
        base = next((kind for kind in type(module).__mro__ if kind in _DIMENSIONS), None)
        if base is None or (type(module) is not base and _has_more(module)):
            return None
        own: Any = module
        return cls(
            own=None if type(module) is base else _without_numbers(module),
            in_channels=own.in_channels,
            out_channels=own.out_channels,
            kernel=tuple(own.kernel_size),
            stride=tuple(own.stride),
            dilation=tuple(own.dilation),
            groups=own.groups,
            transposed=own.transposed,
            padding=_padding(own),
            padding_mode=own.padding_mode,
            output_padding=tuple(own.output_padding),
            last_in_memory=is_channels_last(own.weight),
        )

    def window(self, shape: tuple[int, ...], *, biased: bool, training: bool = False) -> Window:
        """Return how inputs of `shape` are read, by a layer that has a bias or none."""
        padding = self.padding if self.padding_mode == "zeros" else None
        if self.own is not None and not self.transposed:
            module: Any = copy.copy(self.in_mode(training).own)
            weight, bias = self._without_numbers(), torch.empty(self.out_channels, device="meta") if biased else None
            module.__dict__.update(weight=weight, bias=bias)
            steps = (self.stride, self.dilation, self.groups)
            padding = own_padding(module.forward, torch.empty(shape, device="meta"), weight, bias, steps)
        return Window(
            kernel=self.kernel,
            stride=self.stride,
            dilation=self.dilation,
            padding=padding,
            groups=self.groups,
            transposed=self.transposed,
            channels_last=self.last_in_memory,
        )

    @property
    def rows_apply(self) -> bool:
        """Whether each output is one row of `rows`, of several groups a part of it, times the weight."""
        if self.transposed:
            return False
        if self.own is None:
            return True
        size = [dilation * (kernel - 1) + step + 1 for dilation, kernel, step in self._sizes()]
        try:
            return self._handed(torch.empty(1, self.in_channels, *size, device="meta")) is not None
        except Exception:  # whatever a forward of someone else's does without numbers
            return False

    @property
    def depth(self) -> int:
        """How many products each output sums, of a transposed convolution on average."""
        whole = self.in_channels // self.groups * prod(self.kernel)
        return whole // prod(self.stride) if self.transposed else whole

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the module's weight as (out, in / groups * kernel positions)."""
        if not self.transposed:
            return weight.reshape(self.out_channels, -1)
        apart = weight.reshape(self.groups, self.in_channels // self.groups, -1, *self.kernel)
        return apart.transpose(1, 2).reshape(self.out_channels, -1)

    def weight(self, matrix: Tensor) -> Tensor:
        """Undo `matrix`, in the memory format that the module's weight had."""
        inputs = self.in_channels // self.groups
        if self.transposed:
            apart = matrix.reshape(self.groups, self.out_channels // self.groups, inputs, *self.kernel)
            whole = apart.transpose(1, 2).reshape(self.in_channels, -1, *self.kernel)
        else:
            whole = matrix.reshape(self.out_channels, inputs, *self.kernel)
        return whole.to(memory_format=LAST[len(self.kernel)]) if self.last_in_memory else whole

    def rows(self, inputs: Tensor) -> Iterator[Tensor]:
        """Yield what the weight's matrix is multiplied with, (positions, in * kernel positions), sample by sample."""
        if self.own is not None:
            handed = self._handed(inputs)
            assert handed is not None  # `rows_apply` says so
            inputs, plain = handed
            yield from plain.rows(inputs)
            return
        spatial = len(self.kernel)
        for sample in inputs if inputs.ndim > spatial + 1 else [inputs]:
            view = self._padded(sample)
            for axis, (size, step, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True), 1):
                view = view.unfold(axis, dilation * (size - 1) + 1, step)[..., ::dilation]
            # (channel, *position, *kernel) -> (position, channel * kernel)
            order = (*range(1, spatial + 1), 0, *range(spatial + 1, 2 * spatial + 1))
            positions = prod(view.shape[1 : spatial + 1])
            yield view.permute(order).reshape(positions, self.in_channels * prod(self.kernel))

    def channels_last(self, inputs: Tensor) -> Tensor:
        """Return the input as (..., channels)."""
        return inputs.movedim(-1 - len(self.kernel), -1)

    def in_mode(self, training: bool) -> Convolution:
        """Return it with the mode of the forward of a subclass, whose parts are not those of the model."""
        if self.own is not None:
            self.own.train(training)
        return self

    def apply(self, inputs: Tensor, weight: Tensor, bias: Tensor | None, output_size: Any = None) -> Tensor:
        """Return the convolution of `inputs` with a weight in the module's own shape."""
        if self.own is not None:
            module: Any = copy.copy(self.own)  # calls may come from several threads
            module.__dict__.update(weight=weight, bias=bias)
            result: Tensor = module.forward(inputs) if output_size is None else module.forward(inputs, output_size)
            return result
        run = _RUN[self.transposed, len(self.kernel)]
        if not self.transposed:
            padded = self._padded(inputs)
            output: Tensor = run(padded, weight, bias, self.stride, 0, self.dilation, self.groups)
            return output
        padding = tuple(before for before, _ in self.padding)
        behind = self._behind(inputs, output_size)
        output = run(inputs, weight, bias, self.stride, padding, behind, self.groups, self.dilation)
        return output  # noqa: RET504  # mypy sees a tensor

    def module(self) -> nn.Module:
        """Return a module that computes it and has no weight and bias yet."""
        if self.own is not None:
            return _without_numbers(self.own)
        even = all(before == behind for before, behind in self.padding)
        further = {"output_padding": self.output_padding} if self.transposed else {}
        made: nn.Module = _MODULES[self.transposed, len(self.kernel)](
            self.in_channels,
            self.out_channels,
            self.kernel,
            stride=self.stride,
            padding=tuple(before for before, _ in self.padding) if even else "same",
            dilation=self.dilation,
            groups=self.groups,
            padding_mode=self.padding_mode,
            device="meta",
            **further,
        )
        return made

    def _handed(self, inputs: Tensor) -> tuple[Tensor, Convolution] | None:
        """Return what the forward of a subclass convolves with its weight as it is, and how; `None`: with another."""
        weight = self._without_numbers()
        call = caught(lambda own: self.apply(own, weight, None), inputs)
        if call is None or call.weight is not weight or isinstance(call.padding, str) or call.groups != self.groups:
            return None
        spatial = len(self.kernel)
        padding = tuple((size, size) for size in each(call.padding, spatial))
        plain = replace(
            self,
            own=None,
            stride=each(call.stride, spatial),
            dilation=each(call.dilation, spatial),
            groups=call.groups,
            padding=padding,
            padding_mode="zeros",
        )
        return call.inputs, plain

    def _without_numbers(self) -> Tensor:
        return torch.empty(self.out_channels, self.in_channels // self.groups, *self.kernel, device="meta")

    def _sizes(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.dilation, self.kernel, self.stride, strict=True)

    def _padded(self, inputs: Tensor) -> Tensor:
        if not any(before or behind for before, behind in self.padding):
            return inputs
        # `pad` begins with the last axis.
        sides = [side for both in reversed(self.padding) for side in both]
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        if mode == "constant":
            return functional.pad(inputs, sides)
        # The other modes want an axis of samples.
        alone = inputs.ndim == len(self.kernel) + 1
        padded = functional.pad(inputs[None] if alone else inputs, sides, mode=mode)
        return padded[0] if alone else padded

    def _behind(self, inputs: Tensor, output_size: Any) -> tuple[int, ...]:
        if output_size is None:
            return self.output_padding
        wanted = tuple(output_size)[-len(self.kernel) :]
        least = [
            (size - 1) * step - before - behind + dilation * (kernel - 1) + 1
            for size, step, (before, behind), dilation, kernel in zip(
                inputs.shape[-len(self.kernel) :], self.stride, self.padding, self.dilation, self.kernel, strict=True
            )
        ]
        return tuple(size - smallest for size, smallest in zip(wanted, least, strict=True))


def _padding(module: Any) -> tuple[tuple[int, int], ...]:
    """Return the padding before and behind each spatial axis, `same` and `valid` worked out."""
    if module.padding == "valid":
        return ((0, 0),) * len(module.kernel_size)
    if module.padding == "same":
        whole = [dilation * (size - 1) for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
        return tuple((total // 2, total - total // 2) for total in whole)
    return tuple((size, size) for size in module.padding)


def _has_more(module: nn.Module) -> bool:
    """Whether a module has other numbers than weight and bias, which a quantized form would lose."""
    names = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    return bool(names - {"weight", "bias"})


def _without_numbers(module: nn.Module) -> nn.Module:
    shell = copy.copy(module)
    shell._parameters = {}
    # Calibration waits in a forward that is put upon the module itself; the one of the class is meant.
    shell.__dict__.pop("forward", None)
    shell._modules = {name: copy.deepcopy(part) for name, part in module._modules.items()}
    return shell


def is_channels_last(tensor: Tensor) -> bool:
    """Whether `tensor` (.., channels, *spatial) is laid out so, which shapes with sizes of 1 show in strides only."""
    if tensor.ndim - 2 not in LAST:
        return False
    plain = torch.empty(tensor.shape, device="meta")
    return tensor.stride() == plain.to(memory_format=LAST[tensor.ndim - 2]).stride() != plain.stride()


def same_rows(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules multiply the same rows when they are given the same input."""
    if first is second:
        return True
    one, other = Convolution.of(first), Convolution.of(second)
    if one is None or other is None:
        return one is other
    # What the forwards of two subclasses do before the product is not compared.
    return one.own is other.own is None and _reading(one) == _reading(other)


def _reading(convolution: Convolution) -> tuple[Any, ...]:
    own = convolution
    return own.kernel, own.stride, own.dilation, own.padding, own.padding_mode, own.groups, own.rows_apply
