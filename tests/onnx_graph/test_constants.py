"""Constants are brought into one form; what a graph puts out keeps its names."""

import numpy as np
import onnx_ir as ir
import onnxruntime

from fewbit.onnx_graph.constants import fold_constants


def test_an_output_that_is_another_one_keeps_its_own_name(onnx_model):
    proto = onnx_model("(float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Identity(y) }", {})
    model = ir.from_proto(proto)
    fold_constants(model)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.asarray([1.0, -1.0], np.float32)
    assert [output.name for output in session.get_outputs()] == ["y", "z"]
    np.testing.assert_array_equal(session.run(None, {"x": x}), [[1.0, 0.0]] * 2)


def test_between_nodes_an_identity_is_left_out(onnx_model):
    text = "(float[2] x) => (float[2] y) { a = Relu(x) b = Identity(a) c = Identity(b) y = Neg(c) }"
    model = ir.from_proto(onnx_model(text, {}))
    fold_constants(model)
    assert [node.op_type for node in model.graph] == ["Relu", "Neg"]
