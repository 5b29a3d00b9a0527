"""A search over an ONNX file: scored by outputs, measured as a whole, stored as its runtime stores it."""

import numpy as np
import onnx
import pytest

import fewbit as fb
from fewbit.errors import PlanError


@pytest.fixture
def graph(tmp_path, onnx_model):
    """An ONNX file with three layers, and batches for it."""
    text = """(float[16, 32] x) => (float[16, 8] y) {
        a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Relu(c) y = MatMul(d, w2)
    }"""
    path, draw = tmp_path / "m.onnx", np.random.default_rng(1)
    onnx.save(onnx_model(text, {"w0": (32, 64), "w1": (64, 64), "w2": (64, 8)}), path)
    return path, [draw.normal(size=(16, 32)).astype(np.float32) for _ in range(2)]


def test_an_onnx_graph_is_scored_by_outputs_and_measured_as_a_whole(graph, found):
    path, batches = graph
    own = found(path, batches, 6.0, rounds=2, dtype="auto")
    assert own.report.metric == "output_error, refined by kl_divergence"
    assert own.report.cost == "noise to signal"
    assert own.report.bits <= 6.0
    result = fb.quantize(path, own.recipe, calibration=batches, evaluation=batches)
    assert 10 ** (-result.report.output_sqnr / 10) == pytest.approx(own.report.measured, rel=1e-3)  # dB of float32 sums
    with pytest.raises(PlanError, match="fisher: an onnx model gives no gradients"):
        found(path, batches, 6.0, dtype="auto", metric="fisher")
    with pytest.raises(
        PlanError, match="a latency budget is measured layer by layer, which an onnx model does not run"
    ):
        found(path, batches, "20ms", dtype="auto")


def test_a_file_for_onnxruntime_has_the_bytes_of_its_own_tensors(graph, tmp_path, found):
    path, batches = graph
    own = found(path, batches, 7.0, "int4 g32,int8 channel", to="ort-cpu", dtype="auto", rounds=1)
    made = fb.plan(path, own.recipe, to="ort-cpu")
    assert not made.problems
    assert made.bytes_after == own.report.bytes
    assert {row.scheme for row in own.rows} == {"int4 g32", "int8 channel"}
    result = fb.quantize(path, own.recipe, calibration=batches, evaluation=batches, to="ort-cpu")
    assert own.reported(result).report.allocation == own.report
    assert own.reported(result).save(tmp_path / "out.onnx").is_file()
