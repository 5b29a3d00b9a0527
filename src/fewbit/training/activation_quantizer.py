"""What goes into a layer or a product, or comes out, rounded in training: by a range of each time, or of the run."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.activation import Activation
from fewbit.errors import CalibrationError
from fewbit.frontends.torch.rounding import Rounding
from fewbit.numerics.namespace import to_float32
from fewbit.numerics.rounding import flushed
from fewbit.schemes.granularity import PerTensor
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import Scheme
from fewbit.training.options import Training
from fewbit.training.schedule import Schedule
from fewbit.training.trained_range import TrainedRange


class ActivationQuantizer(nn.Module):
    """Rounds tensors whose channels lie `spatial` axes before the last; keeps their type.

    `channels`: `None` where their number differs from run to run, as that of keys does; all are then one.
    """

    def __init__(
        self, layer: str, scheme: Scheme, channels: int | None, training: Training, schedule: Schedule
    ) -> None:
        super().__init__()
        self.layer = layer
        self.scheme = scheme
        self.spatial = 0
        self.momentum = training.momentum
        self._schedule = (schedule,)
        self.range: TrainedRange | None = None
        self._shape: tuple[int, ...] = () if channels is None or scheme.granularity == PerTensor() else (channels,)
        if scheme.static:
            kind = training.kind(weight=False)
            self.range = TrainedRange(scheme.grid, training.gradient, kind, self._shape, schedule)

    @property
    def activation(self) -> Activation:
        """The rounding as it is now.

        Raises:
            CalibrationError: no input has reached it.

        """
        if self.range is None:
            return Activation(scheme=self.scheme)
        try:
            scale, zero = self.range.settled()
        except CalibrationError as error:
            raise CalibrationError(f"{self.layer}: {error}") from error
        return Activation(scheme=self.scheme, scale=scale, zero_point=zero)

    def forward(self, values: Tensor) -> Tensor:
        """Return `values` rounded."""
        if not values.numel():
            return values
        with torch.autocast(values.device.type, enabled=False):
            rounded = self._by_range(values) if self.range is not None else self._dynamic(values)
            return self._schedule[0].rounded(values, rounded.to(values.dtype))

    def on_input(
        self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Round what a layer is given; a hook of it."""
        if arguments:
            return (self(arguments[0]), *arguments[1:]), named
        return arguments, {name: self(value) if name == "input" else value for name, value in named.items()}

    def on_output(self, _: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG002
        """Round what a layer puts out; a hook of it."""
        found: Tensor = self(output)
        return found

    def _dynamic(self, values: Tensor) -> Tensor:
        rounded: Tensor = Rounding(Activation(scheme=self.scheme), spatial=self.spatial)(values)
        return rounded

    def _by_range(self, values: Tensor) -> Tensor:
        assert self.range is not None
        own, schedule = self.range, self._schedule[0]
        if not own.ready and (self.training or schedule.starting):
            self._start(values.detach())
        elif own.kind == "average" and self.training:
            own.observe(*self._bounds(values.detach(), searched=False), self.momentum)
        try:
            parameters = {name: self._beside(value) for name, value in own.parameters_by_name.items()}
        except CalibrationError as error:
            raise CalibrationError(f"{self.layer}: {error}") from error
        # LSQ counts the numbers of one sample, so that the size of a batch does not matter.
        sharing = max(1, values.numel() // (values.shape[0] * prod(self._shape)))
        found: Tensor = own.gradient(flushed(values), parameters, own.grid, sharing)
        return found

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _start(self, values: Tensor) -> None:
        """Begin with the range of what comes first, of least squared error where it is learned."""
        assert self.range is not None
        self.range.start(*self._bounds(values, searched=self.range.kind == "learned"))

    def _bounds(self, values: Tensor, *, searched: bool) -> tuple[Tensor, Tensor]:
        """Return the bounds of `values` by the range method of the scheme."""
        scheme = self.scheme.searched() if searched else self.scheme
        channels = -1 - self.spatial
        apart = values.movedim(channels, 0).flatten(1) if self._shape else values.reshape(1, -1)
        boxes = to_float32(apart)[:, None, None, :]
        low, high = scheme.ranging(boxes, (1, 3), scheme.grid, None)
        return low.reshape(self._shape), high.reshape(self._shape)

    def _beside(self, numbers: Tensor) -> Tensor:
        """Return the numbers of channels beside their spatial axes."""
        return numbers.reshape(-1, *(1 for _ in range(self.spatial))) if numbers.ndim else numbers

    def extra_repr(self) -> str:
        """Return the notation, for `print(model)`."""
        return input_scheme_to_text(self.scheme)
