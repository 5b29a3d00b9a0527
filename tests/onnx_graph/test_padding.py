"""A convolution pads what an operator before it padded, and computes the same; what it cannot pad stays."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from fewbit.onnx_graph.constants import fold_constants
from fewbit.onnx_graph.padding import merge_padding

_X = np.random.default_rng(0).normal(size=(2, 3, 6, 7)).astype(np.float32)


def _merged(onnx_model, pad, *, conv="", sizes=(0, 0, 1, 2, 0, 0, 0, 3), filler=0.0, further=""):
    text = f"""(float[n, 3, a, b] x) => (float[n, 4, c, d] y) {{
        padded = Pad{pad}(x, sizes, filler{further})
        y = Conv<kernel_shape = [2, 2]{conv}>(padded, weight)
    }}"""
    constants = {"weight": (4, 3, 2, 2), "sizes": np.asarray(sizes, np.int64), "filler": np.float32(filler)}
    if further:
        constants["axes"] = np.asarray([2, 3], np.int64)
    proto = onnx_model(text, constants, opset=18)
    before = _run(proto)
    model = ir.from_proto(proto)
    fold_constants(model)
    merge_padding(model)
    after = ir.to_proto(model)
    np.testing.assert_array_equal(_run(after), before)
    return {node.op_type: node for node in after.graph.node if node.op_type != "Pad" or _is_read(after, node)}


def _is_read(proto, node):
    return any(node.output[0] in other.input for other in proto.graph.node)


def _run(proto):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": _X})[0]


def _pads(node):
    return next((list(own.ints) for own in node.attribute if own.name == "pads"), None)


def test_zeros_become_those_of_the_convolution(onnx_model):
    nodes = _merged(onnx_model, "")
    assert "Pad" not in nodes
    assert _pads(nodes["Conv"]) == [1, 2, 0, 3]


def test_they_are_added_to_its_own(onnx_model):
    nodes = _merged(onnx_model, "", conv=', pads = [1, 0, 0, 1], auto_pad = "NOTSET"')
    assert _pads(nodes["Conv"]) == [2, 2, 0, 4]


def test_axes_may_be_named(onnx_model):
    nodes = _merged(onnx_model, "", sizes=(1, 0, 0, 2), further=", axes")
    assert _pads(nodes["Conv"]) == [1, 0, 0, 2]


@pytest.mark.parametrize(
    "given",
    [
        {"pad": "", "filler": 1.0},
        {"pad": '<mode = "reflect">'},
        {"pad": "", "sizes": (1, 0, 0, 0, 0, 0, 0, 0)},
        {"pad": "", "sizes": (0, 0, -1, 0, 0, 0, 0, 0)},
        {"pad": "", "conv": ', auto_pad = "SAME_UPPER"'},
    ],
    ids=["other numbers", "copies", "samples", "cropping", "automatic"],
)
def test_what_a_convolution_does_not_pad_stays(onnx_model, given):
    nodes = _merged(onnx_model, given.pop("pad"), **given)
    assert "Pad" in nodes


def test_a_padded_value_that_others_read_stays_for_them(onnx_model):
    text = """(float[n, 3, a, b] x) => (float[n, 4, c, d] y, float[n, 3, e, f] z) {
        padded = Pad(x, sizes)
        y = Conv<kernel_shape = [2, 2]>(padded, weight)
        z = Relu(padded)
    }"""
    sizes = np.asarray([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    model = ir.from_proto(onnx_model(text, {"weight": (4, 3, 2, 2), "sizes": sizes}, opset=18))
    fold_constants(model)
    merge_padding(model)
    nodes = {node.op_type: node for node in model.graph}
    assert nodes["Conv"].inputs[0].name == "x"
    assert nodes["Relu"].inputs[0] is nodes["Pad"].outputs[0]
    onnx.checker.check_model(ir.to_proto(model))
