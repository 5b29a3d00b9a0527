"""A quantized weight as initializers: codes as the operator stores them, scales and zero points beside them.

w = (codes - z) s, with s and z for the tensor, for each index of an axis, or for each block along one (opset 21).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.checkpoints.onnx.draft import Attributes, Draft
from fewbit.checkpoints.onnx.element_type import element_type
from fewbit.checkpoints.onnx.rounding import stored_scale
from fewbit.formats.integer import Int
from fewbit.numerics.namespace import to_numpy
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.qtensor import QTensor
from fewbit.schemes.granularity import PerGroup

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """What stands in the file for a weight."""

    codes: Numbers
    #: One, one for each index of `axis`, or in the shape of the codes with one for each block of `axis`.
    scale: Numbers
    #: In the shape of the scale; `None`: 0.
    zero: Numbers | None
    axis: int | None = None
    block: int | None = None

    @property
    def attributes(self) -> Attributes:
        """What a DequantizeLinear has to be told."""
        both = {"axis": self.axis, "block_size": self.block}
        return {name: number for name, number in both.items() if number is not None}


def stored_weight(
    own: GraphLayer, qtensor: QTensor, *, unsigned: bool = False, whole_bytes: bool = True
) -> StoredWeight:
    """Return the weight of a layer as its operator stores it; `unsigned` and `whole_bytes` as in `element_type`.

    Raises:
        CheckpointError: the type of the weight does not hold the scales.

    """
    scheme, arrangement = qtensor.scheme, own.arrangement
    element = element_type(scheme.format, unsigned=unsigned, whole_bytes=whole_bytes)
    codes = element.stored(arrangement.stored(to_numpy(qtensor.codes)))
    dtype = own.weight.const_value.dtype  # type: ignore[union-attr]
    scale = stored_scale(qtensor.scale, dtype, own.layer.name)
    zero = np.zeros(scale.shape) if qtensor.zero_point is None else to_numpy(qtensor.zero_point)
    # Behind a float there is only 0, and 0 is what is meant where nothing stands; integers say it for the runtimes
    # that look for it, but not once a block.
    needed = qtensor.zero_point is not None or element.shift or (scale.shape[1] == 1 and isinstance(scheme.format, Int))
    stored = element.stored(zero) if needed else None
    if scale.size == 1:
        shape: tuple[int, ...] = ()
        return StoredWeight(codes=codes, scale=scale.reshape(shape), zero=_as(stored, shape))
    if scale.shape[1] == 1:
        shape = (scale.shape[0],)
        return StoredWeight(codes=codes, scale=scale.reshape(shape), zero=_as(stored, shape), axis=arrangement.out_axis)
    assert isinstance(scheme.granularity, PerGroup)  # Runtime.problem refuses the rest
    return StoredWeight(
        codes=codes,
        scale=np.ascontiguousarray(arrangement.stored(scale)),
        zero=None if stored is None else np.ascontiguousarray(arrangement.stored(stored)),
        axis=arrangement.in_axis,
        block=scheme.granularity.size,
    )


def dequantized(draft: Draft, own: GraphLayer, weight: StoredWeight) -> ir.Value:
    """Return what a DequantizeLinear makes of a weight, named after its layer."""
    name, node = own.layer.name, own.node
    inputs = [draft.codes(own, weight.codes), draft.constant(f"{name}.scale", weight.scale, near=node)]
    if weight.zero is not None:
        inputs.append(draft.constant(f"{name}.zero_point", weight.zero, near=node))
    made = draft.node("DequantizeLinear", inputs, f"{name}.dequantized", weight.attributes)
    draft.put_before(node, [made])
    return made.outputs[0]


def _as(numbers: Numbers | None, shape: tuple[int, ...]) -> Numbers | None:
    return None if numbers is None else numbers.reshape(shape)
