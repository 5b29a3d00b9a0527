"""Float16 files: as exact as float16 is, float32 where numbers would overflow, and the same at their edges."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from fewbit.checkpoints.onnx.half import write_half
from fewbit.errors import CheckpointError

FROM_INTEGERS = "computes with integers alone"


def extremes(own, run):
    """Return the least and largest number of each float value, as calibration would have seen them."""
    proto = ir.to_proto(own.model.graph.clone())
    names = [name for node in proto.graph.node for name in node.output]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    seen = {**own.feeds, **run(proto, own.feeds)}
    return {name: (float(array.min()), float(array.max())) for name, array in seen.items() if array.dtype == np.float32}


def written(own, path, seen):
    found = write_half(own.model, path, seen)
    onnx.checker.check_model(path, full_check=True)
    return found


OVERFLOW = """<ir_version: 8, opset_import: ["" : 17]> g (float[4,64] x) => (float[4,8] y)
<float big={3e4}, float small={1e-4}> {
    h = MatMul(x, w)
    s = Mul(h, big)
    r = Relu(s)
    t = Mul(r, small)
    y = MatMul(t, v)
}"""


def test_values_that_overflow_are_an_island_and_the_rest_is_float16(case, run, error, tmp_path):
    own = case(OVERFLOW, w=(64, 32), v=(32, 8))
    found = written(own, tmp_path / "m.onnx", extremes(own, run))
    assert list(found.islands) == ["s", "r", "t"]
    assert "value s reaches" in found.islands["s"]
    assert (found.nodes, found.casts) == (2, 4)
    assert found.nbytes <= (64 * 32 + 32 * 8) * 2 + 8
    made = run(tmp_path / "m.onnx", own.feeds)["y"]
    assert made.dtype == np.float32
    assert error(made, own.float()) < 2e-3  # 11 bits
    # onnxruntime has few float16 kernels for CPUs and computes in float32 between; the reference of onnx does not.
    assert error(ReferenceEvaluator(str(tmp_path / "m.onnx")).run(None, own.feeds)[0], own.float()) < 5e-3
    assert written(own, tmp_path / "blind.onnx", {}).islands == {}
    with pytest.warns(RuntimeWarning):
        assert not np.isfinite(ReferenceEvaluator(str(tmp_path / "blind.onnx")).run(None, own.feeds)[0]).all()


def test_a_cnn_becomes_float16_throughout(cnn, run, error, tmp_path):
    own = cnn()
    found = written(own, tmp_path / "m.onnx", extremes(own, run))
    assert (found.islands, found.nodes) == ({}, 14)
    assert found.casts == 2  # its input and its output
    assert error(run(tmp_path / "m.onnx", own.feeds)["y"], own.float()) < 2e-3


def test_constants_that_overflow_keep_their_readers_float32_and_infinity_does_not(case, run, tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[4,8] x) => (float[4,8] y)
    <float mask={-3e38}, float none={0}> {
        n = Less(x, none) m = Where(n, mask, x) p = Softmax(m) y = MatMul(p, w)
    }"""
    own = case(text, w=(8, 8))
    found = written(own, tmp_path / "m.onnx", extremes(own, run))
    assert list(found.islands) == ["m", "p"]
    assert "constant mask holds a number beyond 65504" in found.islands["m"]
    infinite = case(text.replace("-3e38", "-inf"), w=(8, 8))
    found = written(infinite, tmp_path / "inf.onnx", {})
    assert found.islands == {}
    np.testing.assert_allclose(run(tmp_path / "inf.onnx", own.feeds)["y"], infinite.float(), atol=2e-3)


def test_numbers_computed_from_integers_alone_stay_float32(case, run, tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[3000,8] x, int64[3000,1] position) => (float[3000,8] y)
    <float[8] frequency={1,0.5,0.25,0.1,0.01,0.001,0.0001,0.00001}> {
        f = Cast<to=1>(position) a = Mul(f, frequency) c = Cos(a) y = Mul(x, c)
    }"""
    own = case(text)
    own.feeds["position"] = np.arange(3000, dtype=np.int64).reshape(-1, 1)
    found = written(own, tmp_path / "m.onnx", extremes(own, run))
    assert set(found.islands) == {"f", "a", "c"}
    assert all(FROM_INTEGERS in reason for reason in found.islands.values())
    assert np.abs(run(tmp_path / "m.onnx", own.feeds)["y"] - own.float()).max() < 5e-3


def test_branches_and_unknown_operators_read_float32_as_before(case, run, tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[4,8] x, bool c) => (float[4,8] y, float[4,8] u) {
        h = MatMul(x, w)
        y = If(c) <
            then_branch = a () => (float[4,8] i) { i = Relu(h) },
            else_branch = b () => (float[4,8] j) { j = Neg(h) }
        >
        k = com.microsoft.QuickGelu<alpha=1.0>(h)
        u = Neg(k)
    }"""
    own = case(text, w=(8, 8))
    own.feeds["c"] = np.asarray(True)
    found = written(own, tmp_path / "m.onnx", {})
    assert set(found.islands) == {"y", "k"}
    made = run(tmp_path / "m.onnx", own.feeds)
    np.testing.assert_allclose(made["y"], own.float(), atol=1e-2)
    assert made["u"].dtype == np.float32


def test_what_an_operator_takes_in_float32_only_stays_so(case, run, error, tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,2,4,4] x) => (float[1,2,8,8] y)
    <float[0] roi={}, float[4] scales={1,1,2,2}, int64[4] shape={1,2,8,8}> {
        r = Resize<mode="nearest">(x, roi, scales)
        z = ConstantOfShape(shape)
        y = Add(r, z)
    }"""
    own = case(text)
    found = written(own, tmp_path / "m.onnx", {})
    assert found.islands == {}
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert kinds["scales"] == onnx.TensorProto.FLOAT
    assert error(run(tmp_path / "m.onnx", own.feeds)["y"], own.float()) < 1e-3


def test_an_output_that_others_read_too_keeps_its_name_and_type(case, run, tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[4,8] x) => (float[4,8] h, float[4,8] y)'
    own = case(f"{text} {{ h = MatMul(x, w) y = Relu(h) }}", w=(8, 8))
    written(own, tmp_path / "m.onnx", {})
    made = run(tmp_path / "m.onnx", own.feeds)
    assert {name: array.dtype for name, array in made.items()} == {"h": np.float32, "y": np.float32}
    np.testing.assert_array_equal(np.maximum(made["h"], 0), made["y"])


def test_a_path_that_exists_is_refused(case, tmp_path):
    own = case(OVERFLOW, w=(64, 32), v=(32, 8))
    (tmp_path / "m.onnx").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="exists"):
        write_half(own.model, tmp_path / "m.onnx", {})
    assert (tmp_path / "m.onnx").read_bytes() == b"mine"
