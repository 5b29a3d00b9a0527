"""Patches of convolutions: times the weight they are what onnxruntime's Conv gives."""

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest

from fewbit.frontends.onnx.patches import Window
from fewbit.onnx_graph.arrangement import Kernel

CASES = {
    "plain": {},
    "strided": {"strides": [2, 3]},
    "padded": {"pads": [1, 0, 2, 3]},
    "dilated": {"dilations": [2, 1], "pads": [1, 1, 1, 1]},
    "everything": {"strides": [2, 1], "dilations": [1, 2], "pads": [2, 1, 0, 3]},
    "same above": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same below": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "valid": {"auto_pad": "VALID"},
}


def compared(attributes, weight, inputs):
    """Return the output of Conv, and what the patches give."""
    import onnx_ir as ir

    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "conv", [value("x", 1, inputs.shape)], [value("y", 1, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": inputs})[0]
    window = Window.of(next(iter(ir.from_proto(proto).graph)), weight.shape[2:])
    matrix = Kernel(shape=weight.shape).matrix(weight)
    found = np.stack([rows @ matrix.T for rows in window.rows(inputs)])  # (samples, positions, out)
    return expected, np.moveaxis(found, -1, 1).reshape(expected.shape)


@pytest.mark.parametrize("case", CASES)
def test_patches_times_the_weight_are_the_convolution(case):
    random = np.random.default_rng(0)
    weight, inputs = random.normal(size=(4, 3, 3, 2)), random.normal(size=(2, 3, 9, 8))
    expected, found = compared(CASES[case], weight.astype(np.float32), inputs.astype(np.float32))
    # Sums of 18 products of numbers about 1, in another order.
    assert np.allclose(expected, found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spatial", [1, 3])
def test_of_one_and_of_three_axes_too(spatial):
    random = np.random.default_rng(1)
    weight = random.normal(size=(4, 2, *itertools.repeat(3, spatial))).astype(np.float32)
    inputs = random.normal(size=(2, 2, *range(6, 6 + spatial))).astype(np.float32)
    expected, found = compared({"pads": [1] * (2 * spatial), "strides": [2] * spatial}, weight, inputs)
    assert np.allclose(expected, found, rtol=0, atol=2e-5)  # sums of up to 54 products


def test_windows_that_cut_the_same_patches_are_equal():
    def window(**attributes):
        import onnx_ir as ir

        node = ir.from_proto(onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attributes))
        return Window.of(node, (3, 3))

    assert window() == window(strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1])
    assert window() != window(strides=[2, 2])
