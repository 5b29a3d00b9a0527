"""What operators of torch make of what is known of their inputs: cut, sum, average, join, move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from torch import Tensor

from fewbit.known_output import KnownOutput, joined, regrouped


@dataclass(frozen=True, slots=True)
class KnownTensor:
    """What is known of a tensor."""

    output: KnownOutput
    #: The axis of its channels, from the first.
    axis: int
    #: Writes into the tensor by then.
    version: int = 0


#: Returns what is known of an argument.
Look = Callable[[Any], KnownTensor | None]


def _cut(given: KnownTensor | None, low: Any, high: Any) -> KnownTensor | None:
    bounds = [-inf if low is None else low, inf if high is None else high]
    if given is None or not all(isinstance(bound, int | float) for bound in bounds):
        return None
    output = given.output.clipped(*bounds)
    return None if output is None else KnownTensor(output, given.axis)


def _relu(look: Look, x: Any) -> KnownTensor | None:
    return _cut(look(x), 0.0, None)


def _hardtanh(look: Look, x: Any, low: float = -1.0, high: float = 1.0) -> KnownTensor | None:
    return _cut(look(x), low, high)


def _clamp(look: Look, x: Any, low: Any = None, high: Any = None, **bounds: Any) -> KnownTensor | None:
    return _cut(look(x), bounds.get("min", low), bounds.get("max", high))


def _clamp_max(look: Look, x: Any, high: Any) -> KnownTensor | None:
    return _cut(look(x), None, high)


def _add(look: Look, x: Any, y: Any, alpha: float = 1.0) -> KnownTensor | None:
    one, other = look(x), look(y)
    if one is None or other is None or x.shape != y.shape or one.axis != other.axis or alpha != 1.0:
        return None
    return KnownTensor(one.output.added(other.output), one.axis)


def _same(look: Look, x: Any, *_: Any, **__: Any) -> KnownTensor | None:
    return look(x)


def _mean(
    look: Look, x: Any, dim: Any = None, keepdim: bool = False, **_: Any
) -> KnownTensor | None:  # as torch calls it
    known = look(x)
    if known is None or not dim:
        return None
    axes = {axis % x.ndim for axis in ([dim] if isinstance(dim, int) else dim)}
    if known.axis in axes:
        return None
    before = 0 if keepdim else sum(axis < known.axis for axis in axes)
    return KnownTensor(known.output.averaged(), known.axis - before)


def _adaptive(look: Look, x: Any, *_: Any) -> KnownTensor | None:
    known = look(x)
    return known and KnownTensor(known.output.averaged(), known.axis)


def _average(look: Look, x: Any, *settings: Any) -> KnownTensor | None:
    """Take size, stride, padding, ceil_mode, count_include_pad and divisor, as far as they are given."""
    usual: tuple[Any, ...] = (None, (), 0, False, True, None)
    _, _, padding, _, counted, divisor = settings + usual[len(settings) :]
    padded = any([padding] if isinstance(padding, int) else padding)
    return None if (padded and counted) or divisor is not None else _adaptive(look, x)


def _cat(look: Look, tensors: Sequence[Tensor], dim: int = 0) -> KnownTensor | None:
    known = [own for tensor in tensors if (own := look(tensor)) is not None]
    if not known or len(known) < len(tensors) or any(own.axis != dim % tensors[0].ndim for own in known):
        return None
    return KnownTensor(joined([own.output for own in known]), known[0].axis)


#: By the name of the operator, without the underscore of those that write into their input.
OPERATORS: Mapping[str, Callable[..., KnownTensor | None]] = {
    "relu": _relu, "hardtanh": _hardtanh, "relu6": lambda look, x: _cut(look(x), 0.0, 6.0), "clamp": _clamp,
    "clamp_min": _clamp, "clamp_max": _clamp_max, "add": _add, "cat": _cat, "mean": _mean,
    "avg_pool1d": _average, "avg_pool2d": _average, "avg_pool3d": _average, "_adaptive_avg_pool2d": _adaptive,
    "_adaptive_avg_pool3d": _adaptive, "clone": _same, "detach": _same, "alias": _same, "_to_copy": _same,
}  # fmt: skip
#: Operators that show the same numbers in another shape.
_VIEWS = ("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze")


def reshaped(name: str, look: Look, given: Sequence[Any], output: Any) -> KnownTensor | None:
    """Return what is known of the output of an operator that is a view."""
    known = look(given[0]) if name in _VIEWS and given else None
    place = regrouped(given[0].shape, known.axis, output.shape) if known is not None else None
    if known is None or place is None:
        return None
    return KnownTensor(known.output.repeated(place[1]), place[0])
