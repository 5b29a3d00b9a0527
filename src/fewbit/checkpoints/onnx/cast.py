"""A layer in another float type than the graph around it, y = wide(f(cast x, cast w, cast b)), or its weight alone.

The casts are those of ONNX, to the nearest number; what calibration has not seen may overflow.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fewbit.checkpoints.onnx.draft import Draft
from fewbit.formats.cast import Cast
from fewbit.numerics.namespace import to_numpy
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import Rounded


def write_cast(draft: Draft, own: GraphLayer, rounded: Rounded) -> str:
    """Give a layer its weight in another type, and compute in it where its input is cast too; return what it became."""
    cast, name, node = rounded.qtensor.scheme.format, own.layer.name, own.node
    assert isinstance(cast, Cast)  # form_of asked before
    narrow = ir.DataType[cast.dtype.upper()]
    wide = own.weight.const_value.dtype  # type: ignore[union-attr]
    numbers = own.arrangement.stored(np.asarray(to_numpy(rounded.qtensor.dequantize())))
    weight = draft.constant(f"{name}.{cast.name}", numbers.astype(narrow.numpy()), near=node)
    looked_up = own.layer.kind == "embedding"
    if rounded.activations.input is None and not looked_up:
        back = draft.node("Cast", [weight], f"{name}.weight", {"to": int(wide)})
        draft.put_before(node, [back])
        node.replace_input_with(own.weight_index, back.outputs[0])
        return f"weight in {cast.dtype}"
    node.replace_input_with(own.weight_index, weight)
    for place, value in enumerate(node.inputs):
        if value is not None and place != own.weight_index and not looked_up:
            narrowed = draft.node("Cast", [value], f"{name}.{place}/{cast.name}", {"to": int(narrow)})
            draft.put_before(node, [narrowed])
            node.replace_input_with(place, narrowed.outputs[0])
    made = draft.node("Cast", [own.output], f"{name}.result", {"to": int(wide)})
    draft.put_after(own.output, [made])
    draft.replace(own.output, made.outputs[0], but=made)
    own.output.type = ir.TensorType(narrow)
    return cast.dtype
