"""Follow what BatchNorms say of their outputs through what a module computes behind them: one run, no numbers of it.

Behind a norm values lie in beta +- n |gamma|; ReLU and its like cut that off, pooling keeps it, sums add it up. What is
not in the tables below, a layer above all, gives numbers of which nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fewbit.frontends.torch.calls import tensors_in
from fewbit.synthetic.channel_range import ChannelRange

#: What keeps channels where they are and puts out nothing beyond what comes in. Zeros of padding are in every range.
_KEEPS = (
    *(f"{kind}_pool{axes}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for axes in (1, 2, 3)),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "contiguous", "clone", "detach", "to", "float"),
)  # fmt: skip
#: What puts the same numbers elsewhere.
_MOVES = frozenset(
    {"flatten", "reshape", "view", "squeeze", "unsqueeze", "permute", "transpose", "movedim", "chunk", "split",
     "getitem", "unflatten", "expand", "repeat", "roll", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle",
     "unbind", "narrow", "swapaxes", "flip", "mean"}
)  # fmt: skip
#: Functions of one number; of those with two ends, the ends.
_FUNCTIONS = ("leaky_relu", "elu", "selu", "celu", "silu", "gelu", "mish", "hardswish", "softplus", "abs")
_BOUNDED = {"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "softmax": (0.0, 1.0)}
_INFINITE = (-torch.inf, torch.inf)


class RangeFlow(TorchFunctionMode):
    """The mode of one run."""

    def __init__(self, reach: float) -> None:
        """Follow ranges of so many deviations."""
        super().__init__()
        self.reach = reach
        self._known: dict[int, tuple[ReferenceType[Tensor], int, ChannelRange]] = {}

    def note(self, tensor: Tensor, found: ChannelRange) -> None:
        """Note where the values of `tensor` lie, as it is now."""
        self._known[id(tensor)] = ref(tensor), tensor._version, found

    def of(self, tensor: Any) -> ChannelRange:
        """Return where the values of `tensor` lie; a number lies at itself."""
        if isinstance(tensor, (int, float)):
            point = torch.tensor(float(tensor))
            return ChannelRange(point, torch.zeros(()), point, point)
        known = self._known.get(id(tensor))
        kept = known[0]() if known else None
        if known is None or kept is None or kept is not tensor or kept._version != known[1]:
            return ChannelRange.unknown()
        return known[2]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return what `func` returns, and note where its values lie."""
        name = getattr(func, "__name__", "").strip("_")
        call = _Call(self, func, args, dict(kwargs or {}))
        # Asked before: a function may write into what it is given.
        found = _RULES[name](call) if name in _RULES else None
        given, shape = call.given, call.shape
        outcome = func(*args, **call.named)
        for tensor in tensors_in(outcome) if found or name in _MOVES else ():
            self.note(tensor, found or _moved(given, shape, tensor, self.reach))
        return outcome


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a function of torch."""

    flow: RangeFlow
    function: Any
    args: tuple[Any, ...]
    named: dict[str, Any]

    @property
    def first(self) -> Any:
        """What it is called with first."""
        return self.args[0] if self.args else self.named.get("input")

    @property
    def given(self) -> ChannelRange:
        """Where the values of that lie."""
        return self.flow.of(self.first) if isinstance(self.first, Tensor) else ChannelRange.unknown()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of that."""
        return tuple(self.first.shape) if isinstance(self.first, Tensor) else ()

    def argument(self, place: int, name: str, usual: Any = None) -> Any:
        """Return an argument by its place or name."""
        return self.args[place] if len(self.args) > place else self.named.get(name, usual)

    def bounds(self, names: tuple[str, str], usual: tuple[float, float]) -> tuple[float, float]:
        """Return the two numbers that it cuts off at."""
        ends = [self.argument(place, name, own) for place, name, own in zip((1, 2), names, usual, strict=True)]
        low, high = (
            own if end is None or isinstance(end, Tensor) else float(end) for end, own in zip(ends, usual, strict=True)
        )
        return low, high


def _kept(call: _Call) -> ChannelRange:
    return call.given


def _padded(call: _Call) -> ChannelRange | None:
    return None if call.argument(3, "value") else call.given


def _cut(call: _Call, names: tuple[str, str], usual: tuple[float, float]) -> ChannelRange:
    return call.given.clamped(*call.bounds(names, usual))


def _bounded(call: _Call, low: float, high: float) -> ChannelRange:
    return ChannelRange.between(torch.tensor(low), torch.tensor(high), call.flow.reach)


def _function(call: _Call) -> ChannelRange:
    options = {key: value for key, value in call.named.items() if key not in ("inplace", "input")}
    return call.given.through(lambda values: call.function(values, *call.args[1:], **options), call.flow.reach)


def _normalized(call: _Call) -> ChannelRange | None:
    """Return beta and |gamma| of a norm that uses what it remembers."""
    mean, gain, shift = (
        call.argument(place, name) for place, name in ((1, "running_mean"), (3, "weight"), (4, "bias"))
    )
    if mean is None or call.argument(5, "training"):
        return None
    beta = torch.zeros_like(mean) if shift is None else shift
    gamma = torch.ones_like(mean) if gain is None else gain
    return ChannelRange.normal(beta.detach().float().cpu(), gamma.detach().float().abs().cpu())


def _joined(call: _Call) -> ChannelRange | None:
    """Return the ranges of tensors that lie behind each other, channel by channel."""
    tensors = call.argument(0, "tensors", ())
    if not tensors or call.argument(1, "dim", 0) not in (1, 1 - tensors[0].ndim):
        return None
    parts = [call.flow.of(own).spread(own.shape[1]) for own in tensors]
    ends = ("mean", "deviation", "low", "high")
    return ChannelRange(*(torch.cat([getattr(own, end) for own in parts]) for end in ends))


def _computed(call: _Call, result: Callable[[ChannelRange, ChannelRange, float], ChannelRange]) -> ChannelRange | None:
    """Return the range of a sum or product of two tensors with the same axes, or of a tensor and a number."""
    if len(call.args) != 2 or call.named:
        return None
    axes = {own.ndim for own in call.args if isinstance(own, Tensor)}
    if len(axes) != 1 or not all(isinstance(own, (Tensor, int, float)) for own in call.args):
        return None
    first, second = (call.flow.of(own) for own in call.args)
    return result(first, second, call.flow.reach)


def _moved(given: ChannelRange, before: tuple[int, ...], tensor: Tensor, reach: float) -> ChannelRange:
    """Return the range of numbers that were put elsewhere: of each channel if those are still the second axis."""
    after = tuple(tensor.shape)
    alone = len(after) >= 2 and before[:2] == after[:2] and tensor.numel() == after[0] * after[1]
    return given if alone else given.whole(reach)


#: What each function makes of ranges; of any other nothing is known.
_RULES: dict[str, Callable[[_Call], ChannelRange | None]] = {
    "batch_norm": _normalized,
    "pad": _padded,
    "cat": _joined,
    "concat": _joined,
    **dict.fromkeys(_KEEPS, _kept),
    **dict.fromkeys(_FUNCTIONS, _function),
    **{name: partial(_bounded, low=low, high=high) for name, (low, high) in _BOUNDED.items()},
    "relu": partial(_cut, names=("", ""), usual=(0.0, torch.inf)),
    "relu6": partial(_cut, names=("", ""), usual=(0.0, 6.0)),
    "hardtanh": partial(_cut, names=("min_val", "max_val"), usual=(-1.0, 1.0)),
    "clamp": partial(_cut, names=("min", "max"), usual=_INFINITE),
    "clip": partial(_cut, names=("min", "max"), usual=_INFINITE),
    **dict.fromkeys(("add", "iadd", "radd"), partial(_computed, result=lambda a, b, _: a.plus(b))),
    **dict.fromkeys(("sub", "isub"), partial(_computed, result=lambda a, b, _: a.plus(b.scaled(-1.0)))),
    **dict.fromkeys(("mul", "imul", "rmul"), partial(_computed, result=lambda a, b, reach: a.times(b, reach))),
}
