"""Which input channels of layers are which output channels of a module, seen in runs in which those are marked.

In run t channel c is multiplied by 2^e, e from the t-th octal digit of c. A layer that gets x_j 2^e reads channel c in
its place j; it is given x_j, so that whatever else changes the output reads the module too, or not channel by channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbit.frontends.torch.calls import copied, same
from fewbit.frontends.torch.convolution import Convolution
from fewbit.frontends.torch.output_change import output_change
from fewbit.transforms.link import Channels

#: What the digits of a channel become; none is 0, which is what a channel has that the module does not reach.
_EXPONENTS = torch.tensor([-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0])
#: Rows of an input that are compared.
_ROWS = 64
#: Roundings by which numbers may differ: powers of two change none, but some kernels add in another order each time.
TOLERANCE = 8.0


class _TangledError(BaseException):
    """Stops a run in which marks have become something else; no `except Exception` inside a model catches it."""


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """Rows of what a layer was given in a call."""

    #: How many there were.
    count: int
    #: Which of them are compared, int64.
    places: Tensor
    #: Those, (places, channels).
    rows: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Compared:
        """Return some rows at equal distances, and the largest of each channel that is 0 in all of those."""
        places = torch.arange(0, len(rows), max(1, len(rows) // _ROWS), device=rows.device)
        hidden = (rows[places] == 0).all(0)
        if len(rows) and bool(hidden.any()):
            places = torch.cat([places, rows[:, hidden].abs().argmax(0)])
        return cls(len(rows), places, rows[places])


@dataclass(slots=True)
class MarkedRuns:
    """Runs of a part of a model, what its layers were given and what it put out."""

    model: nn.Module
    #: Names of the layers that may read.
    readers: Sequence[str]
    #: Modules whose output channels may be marked.
    producers: Sequence[nn.Module]
    #: Each runs the part and returns its output.
    runs: Sequence[Callable[[], Any]]
    #: Of each reader the rows that are compared, call by call.
    rows: dict[str, list[Compared]] = field(default_factory=dict)
    #: Shape of the first output of each producer that was called, () of one that is no tensor.
    shapes: dict[nn.Module, tuple[int, ...]] = field(default_factory=dict)
    outputs: list[Any] = field(default_factory=list)

    def record(self) -> None:
        """Run it as it is, as often as it takes to reach every reader."""

        def given(name: str) -> Any:
            def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
                self.rows.setdefault(name, []).append(Compared.of(_rows(module, _first(args, kwargs))))

            return enter

        def put_out(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
            self.shapes.setdefault(module, tuple(output.shape) if isinstance(output, Tensor) else ())

        with ExitStack() as hooks:
            self._listen(hooks, given)
            for producer in self.producers:
                hooks.callback(producer.register_forward_hook(put_out).remove)
            for run in self.runs:
                self.outputs.append(copied(run()))
                if len(self.rows) == len(self.readers):
                    break

    def same_outputs(self, tolerance: float = TOLERANCE) -> bool:
        """Whether the part puts out what it did to so many roundings, whatever has changed in it."""
        return all(same(before, copied(run()), tolerance) for run, before in zip(self.runs, self.outputs, strict=False))

    def change(self) -> float:
        """Return how far what the part puts out is from what it was, in the first run."""
        return output_change(self.outputs[0], self.runs[0]())

    def channels(self, producer: nn.Module) -> dict[str, Channels]:
        """Return of each layer that reads `producer` which channel each of its inputs is, -1: none.

        Empty: nothing reads it channel by channel, or something else reads it too. Of a layer that makes queries, keys
        and values at once it is about the values alone, if they come last, in all or for each head.
        """
        shape = self.shapes.get(producer, ())
        axis = _output_axis(producer, shape)
        if axis is None:
            return {}
        size = shape[axis]
        own = torch.ones(size, dtype=torch.bool)
        seen = self._marked(producer, _digits(own, 0), axis)
        if not seen:
            own = self._last_channels(producer, size, axis)
        found: dict[str, Tensor] = {}
        for place in range(_places(size)):
            if place or not seen:
                seen = self._marked(producer, _digits(own, place), axis)
            if not seen or (place and seen.keys() != found.keys()):
                return {}
            for name, exponents in seen.items():
                digit = torch.bucketize(exponents, _EXPONENTS) * 8**place
                digit[exponents == 0] = -(8**9)
                found[name] = found.get(name, 0) + digit
        return {name: _completed(read.numpy(), size) for name, read in found.items()}

    def _last_channels(self, producer: nn.Module, size: int, axis: int) -> Tensor:
        """Return which of the last channels can be marked together, bool (size,), in each of several parts if need be.

        That is found by bisection; nothing where not even the last can.
        """
        places = torch.arange(size)
        low, high = 0, size  # those from `high` on can, those from `low` on cannot
        trial, width = size - 1, 0
        while trial > low:
            seen = self._marked(producer, _digits(places >= trial, 0), axis)
            if seen:
                high, width = trial, len(next(iter(seen.values())))
            elif trial == size - 1:
                break
            else:
                low = trial
            trial = (low + high) // 2
        last = size - high
        if 0 < last < width and width % last == 0:
            period = size * last // width
            heads = places % period >= period - last
            if self._marked(producer, _digits(heads, 0), axis):
                return heads
        return places >= high

    def _marked(self, producer: nn.Module, marks: Tensor, axis: int) -> dict[str, Tensor]:
        """Return the exponents of each marked input, in one run where the channels of `producer` are marked.

        Empty: there is none, or the marks reach something else as well.
        """
        seen: dict[str, Tensor] = {}
        calls: dict[str, int] = {}

        def mark(module: nn.Module, args: Any, output: Tensor) -> Tensor:  # noqa: ARG001
            return _multiplied(output, marks, axis)

        def unmark(name: str) -> Any:
            def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
                calls[name] = calls.get(name, -1) + 1
                given = _first(args, kwargs)
                exponents = _exponents(_rows(module, given), self.rows.get(name, [])[calls[name] :])
                if not bool(exponents.any()):
                    return None
                # A channel of zeros in one call shows in another.
                seen[name] = torch.where(exponents == 0, seen.get(name, exponents), exponents)
                plain = _multiplied(given, -exponents, _input_axis(module))
                return ((plain, *args[1:]), kwargs) if args else ((), {**kwargs, next(iter(kwargs)): plain})

            return enter

        with ExitStack() as hooks:
            self._listen(hooks, unmark)
            hooks.callback(producer.register_forward_hook(mark).remove)
            try:
                return seen if self.same_outputs() else {}
            except _TangledError:
                return {}

    def _listen(self, hooks: ExitStack, hook: Callable[[str], Any]) -> None:
        for name in self.readers:
            module = self.model.get_submodule(name)
            hooks.callback(module.register_forward_pre_hook(hook(name), with_kwargs=True).remove)


def _places(size: int) -> int:
    """Return how many octal digits tell channels apart."""
    return max(1, (max(size - 1, 1).bit_length() + 2) // 3)


def _digits(own: Tensor, place: int) -> Tensor:
    """Return the exponents that mark channels by one digit, 0 of those that are not in `own`, bool (channels,)."""
    return torch.where(own, _EXPONENTS[torch.arange(len(own)) // 8**place % 8], 0.0)


def _completed(read: Channels, size: int) -> Channels:
    """Return what is read with -1 for nothing; an input that was 0 all along may be read from what others show.

    Positions of a flattened convolution are such: channel c is in every place j with j // positions = c.
    """
    known = (read >= 0) & (read < size)
    positions = max(1, len(read) // size)
    whole = np.arange(len(read)) // positions
    if positions > 1 and len(read) == positions * size and np.array_equal(read[known], whole[known]):
        return whole
    alone = len(np.unique(read[known])) == known.sum()
    # Else a place where nothing was seen could be one more of a channel that is seen elsewhere.
    return np.where(known, read, -1) if alone or known.all() else np.full_like(read, -1)


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else next(iter(kwargs.values()))
    return found


def _input_axis(module: nn.Module) -> int:
    convolution = Convolution.of(module)
    return -1 - len(convolution.kernel) if convolution else -1


def _output_axis(module: Any, shape: tuple[int, ...]) -> int | None:
    """Return the axis of the channels; a norm has them last, or behind that of the samples."""
    if not shape:
        return None
    if module.weight.ndim != 1:
        return _input_axis(module)
    axes = (1, -1) if hasattr(module, "num_features") else (-1, 1)
    return next((axis for axis in axes if len(shape) > max(axis, 0) and shape[axis] == len(module.weight)), None)


def _rows(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return the rows of an input, (rows, channels)."""
    rows = inputs.detach().movedim(_input_axis(module), -1)
    return rows.reshape(-1, rows.shape[-1])


def _multiplied(values: Tensor, exponents: Tensor, axis: int) -> Tensor:
    shape = [1] * values.ndim
    shape[axis] = -1
    return values * torch.exp2(exponents.to(values)).reshape(shape)


def _exponents(given: Tensor, calls: Sequence[Compared]) -> Tensor:
    """Return by which power of two each column has grown since the first of `calls`, 0 for one of zeros.

    Raises:
        _TangledError: by something else.

    """
    if not calls or given.shape != (calls[0].count, calls[0].rows.shape[1]):
        raise _TangledError
    before, rows = calls[0].rows, given[calls[0].places]
    largest, own = before.abs().amax(0), rows.abs().amax(0)
    live = (largest > 0) & (own > 0)
    ones = torch.ones_like(own)
    exponents = torch.log2(torch.where(live, own, ones) / torch.where(live, largest, ones)).round()
    if not same(before * torch.exp2(exponents), rows, TOLERANCE):
        raise _TangledError
    return exponents.float().cpu()
