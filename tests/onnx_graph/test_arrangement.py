"""Weights as operators store them and as fewbit sees them."""

import numpy as np
import pytest

from fewbit.onnx_graph.arrangement import Columns, Kernel, Rows

STORED = np.arange(8 * 6 * 3 * 2, dtype=np.float32)
CASES = {
    "rows": (Rows(), (8, 36), (8, 36)),
    "columns": (Columns(), (36, 8), (8, 36)),
    "Conv": (Kernel(shape=(8, 6, 3, 2)), (8, 6, 3, 2), (8, 36)),
    "grouped Conv": (Kernel(shape=(8, 6, 3, 2), groups=4), (8, 6, 3, 2), (8, 36)),
    "ConvTranspose": (Kernel(shape=(8, 6, 3, 2), transposed=True), (8, 6, 3, 2), (6, 48)),
    "grouped ConvTranspose": (Kernel(shape=(8, 6, 3, 2), groups=4, transposed=True), (8, 6, 3, 2), (24, 12)),
}


@pytest.mark.parametrize("case", CASES)
def test_matrix_and_stored_undo_each_other(case):
    arrangement, stored, rows = CASES[case]
    weight = STORED[: np.prod(stored)].reshape(stored)
    matrix = arrangement.matrix(weight)
    assert matrix.shape == rows
    assert np.array_equal(arrangement.stored(matrix), weight)


@pytest.mark.parametrize("case", CASES)
def test_the_output_axis_counts_the_rows_of_the_matrix(case):
    arrangement, stored, _ = CASES[case]
    if arrangement.out_axis is None:
        assert case == "grouped ConvTranspose"  # groups share the places along it
        return
    weight = np.moveaxis(np.zeros(stored), arrangement.out_axis, 0)
    weight[3] = 1.0
    matrix = arrangement.matrix(np.moveaxis(weight, 0, arrangement.out_axis))
    assert np.array_equal(np.flatnonzero(matrix.any(axis=1)), [3])


def test_rows_of_a_grouped_transposed_convolution_follow_its_groups():
    import onnx
    import onnxruntime

    kernel = Kernel(shape=(8, 6, 3, 2), groups=4, transposed=True)
    weight = np.random.default_rng(0).normal(size=kernel.shape).astype(np.float32)
    matrix = kernel.matrix(weight).copy()
    matrix[13] = 0.0  # an output channel
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=4)], "t",
        [value("x", 1, [1, 8, 4, 4])], [value("y", 1, None)],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(kernel.stored(matrix)), "w")],
    )  # fmt: skip
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    output = session.run(None, {"x": np.ones((1, 8, 4, 4), np.float32)})[0]
    assert np.array_equal(np.flatnonzero(~output[0].any(axis=(1, 2))), [13])
