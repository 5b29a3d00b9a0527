"""The bytes that a plan is told are those in the file."""

import onnx
import pytest

from fewbit.checkpoints.onnx.stored import stored_tensors
from fewbit.checkpoints.onnx.writer import described
from fewbit.runtimes import runtime_named

LINEAR = ("float[5,96] x", "float[5,N] y", "y = MatMul(x,w)", {"w": (96, 7)})
GATHER = ("int64[5] x", "float[5,96] y", "y = Gather(w,x)", {"w": (9, 96)})
CONV = ("float[2,4,9,9] x", "float[2,N,H,W] y", "y = Conv(x,w)", {"w": (6, 4, 3, 3)})


ALONE = ("int4 g32", "int4 g32 asym", "int3 channel", "int8", "int8 g16 asym", "int2 g32 asym", "uint8 tensor asym")
EVERYWHERE = [
    *[(kind, weight, None) for kind in (LINEAR, GATHER) for weight in ALONE],
    *[(LINEAR, weight, "int8 static") for weight in ("int8", "int8 tensor", "int4 channel", "int4 g32")],
    *[(CONV, "int8", given) for given in ("int8 static", None)],
]
ONNXRUNTIME = [
    *[(kind, "int8", "int8 tensor") for kind in (LINEAR, CONV)],
    (LINEAR, "e4m3", "e4m3 static"),
    (LINEAR, "e4m3 g32", None),
]


@pytest.mark.parametrize(
    ("word", "kind", "weight", "given"),
    [(word, *row) for word in ("ort-cpu", "openvino") for row in EVERYWHERE]
    + [("ort-cpu", *row) for row in ONNXRUNTIME],
)
def test_bytes_are_predicted_exactly(case, tmp_path, word, kind, weight, given):
    runtime = runtime_named(word)
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({kind[0]}) => ({kind[1]}) {{ {kind[2]} }}'
    own = case(text, **kind[3]).quantize(runtime, weight=weight, given=given)
    name = next(iter(own.model.layers))
    own.write(runtime, tmp_path / "m.onnx")
    parts = [
        tensor for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer if tensor.name.startswith(f"{name}.")
    ]
    stored = {tensor.name: len(tensor.raw_data) for tensor in parts}
    predicted = stored_tensors(described(own.model, name), runtime, "float32")
    assert {tensor.name: tensor.nbytes for tensor in predicted} == stored
