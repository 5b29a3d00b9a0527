"""The same values under another scheme, where its levels hold them: codes and zero points move, scales are repeated.

(q - z) s = ((q + d) - (z + d)) s for any whole d. What the other scheme does not hold is an error that says why.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbit.checkpoints.safetensors_file import numpy_type
from fewbit.checkpoints.whole_numbers import in_whole_numbers
from fewbit.errors import CheckpointError
from fewbit.formats.integer import Int
from fewbit.numerics.groups import spread
from fewbit.numerics.namespace import to_numpy
from fewbit.qtensor import QTensor, scale_shape
from fewbit.schemes.scheme import Scheme

Numbers = np.ndarray[Any, Any]


def restated(qtensor: QTensor, scheme: Scheme) -> QTensor:
    """Return the values of `qtensor` (NumPy arrays) under `scheme`, equal to the bit.

    >>> from fewbit.qtensor import quantize
    >>> from fewbit.schemes.notation import parse_scheme
    >>> one = quantize(np.asarray([[0.0, 7.5, -7.5, 3.2]]), parse_scheme("int4 channel"))
    >>> restated(one, parse_scheme("int8 g2 asym")).scale.tolist()
    [[1.0, 1.0]]

    Raises:
        CheckpointError: `scheme` does not hold them; the message begins with what it lacks.

    """
    if qtensor.scheme == scheme:
        return qtensor
    qtensor = qtensor if scheme.minimum else in_whole_numbers(qtensor)
    source, target = qtensor.scheme.format, scheme.format
    if not scheme.scaled or not qtensor.scheme.scaled:
        raise CheckpointError(f"{qtensor.scheme} and {scheme} have no levels in common but by rounding")
    if isinstance(qtensor.scale, QTensor) or scheme.scale_scheme is not None:
        raise CheckpointError(f"scales of {qtensor.scheme} are quantized themselves, not as those of {scheme}")
    if qtensor.codebook is not None or qtensor.scheme.float_zero or scheme.float_zero or qtensor.scheme.minimum:
        raise CheckpointError(f"levels of {qtensor.scheme} lie between those of {scheme}")
    scale = _regrouped(to_numpy(qtensor.scale), qtensor, scheme, "scales")
    _require_exact(scale, scheme)
    if isinstance(source, Int) and isinstance(target, Int) and scheme.minimum and not qtensor.scheme.minimum:
        return _about_minimum(qtensor, scheme, target, scale)
    if isinstance(source, Int) and isinstance(target, Int):
        codes, zero = _moved(qtensor, scheme, source, target)
        return QTensor(codes=codes, scale=scale, zero_point=zero, scheme=scheme)
    if source != target:
        raise CheckpointError(f"levels of {source.name} are not among those of {target.name}")
    return QTensor(codes=to_numpy(qtensor.codes), scale=scale, zero_point=None, scheme=scheme)


def _about_minimum(qtensor: QTensor, scheme: Scheme, target: Int, scale: Numbers) -> QTensor:
    """Return codes from 0 and the minimum, -z s, which must be a number of the type of the scales."""
    source = qtensor.scheme.format
    assert isinstance(source, Int)
    codes, zero = _counted(qtensor)
    codes, zero = codes - _lowest(source), _regrouped(zero - _lowest(source), qtensor, scheme, "zero points")
    _require_held(codes, target, target.name)
    minimum = -zero.astype(np.float32) * scale
    _require_exact(minimum, scheme, "minimums")
    return QTensor(codes=target.to_codes(codes), scale=scale, zero_point=None, minimum=minimum, scheme=scheme)


def _counted(qtensor: QTensor) -> tuple[Numbers, Numbers]:
    """Return codes and zero points as int32, without a zero point 0 for each group."""
    codes = to_numpy(qtensor.codes).astype(np.int32)
    if qtensor.zero_point is None:
        return codes, np.zeros(scale_shape(qtensor.shape, qtensor.scheme), np.int32)
    return codes, to_numpy(qtensor.zero_point).astype(np.int32)


def _moved(qtensor: QTensor, scheme: Scheme, source: Int, target: Int) -> tuple[Numbers, Numbers | None]:
    """Return codes and zero points as `target` counts them."""
    codes, zero = _counted(qtensor)
    if scheme.symmetric:
        box = qtensor.scheme.granularity.box(qtensor.shape)
        codes = codes - (spread(zero, qtensor.shape, box) if zero.any() else 0)
        _require_held(codes, target, f"{target.name} without a zero point")
        return target.to_codes(codes), None
    by = _lowest(target) - _lowest(source)
    zero = _regrouped(zero + by, qtensor, scheme, "zero points")
    _require_held(codes + by, target, target.name)
    _require_held(zero, target, f"zero points of {target.name}")
    return target.to_codes(codes + by), target.to_codes(zero)


def _regrouped(parameters: Numbers, qtensor: QTensor, scheme: Scheme, what: str) -> Numbers:
    """Return one parameter for each group of `scheme`, which must be one parameter now."""
    shape = qtensor.shape
    before, after = qtensor.scheme.granularity.box(shape), scheme.granularity.box(shape)
    wanted = scale_shape(shape, scheme)
    if parameters.shape == wanted and before == after:
        return parameters
    every = spread(parameters, shape, before)
    first = np.ascontiguousarray(every[tuple(slice(None, None, step) for step in after)])
    if not np.array_equal(spread(first, shape, after), every):
        raise CheckpointError(f"{what} of {qtensor.scheme} differ inside the groups of {scheme}")
    return first.reshape(wanted)


def _require_exact(numbers: Numbers, scheme: Scheme, what: str = "scales") -> None:
    if scheme.scale_type is None:
        return
    with np.errstate(over="ignore"):
        off = int((numbers.astype(numpy_type(scheme.scale_type)).astype(np.float32) != numbers).sum())
    if off:
        raise CheckpointError(f"{scheme.scale_type} does not hold {off} of {numbers.size} {what} exactly")


def _require_held(values: Numbers, target: Int, what: str) -> None:
    low, high = int(values.min()), int(values.max())
    if low < target.qmin or high > target.qmax:
        raise CheckpointError(f"{what} holds {target.qmin} to {target.qmax}, and there are {low} to {high}")


def _lowest(number: Int) -> int:
    return -(1 << (number.bits - 1)) if number.signed else 0
