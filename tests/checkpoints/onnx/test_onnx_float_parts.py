"""What stays float in a written file: no larger than before, the same numbers, the same names at its edges."""

import numpy as np
import onnx
import pytest

from fewbit.checkpoints.onnx.fusion import fusion
from fewbit.onnx_graph import file
from fewbit.onnx_graph.file import weight_bytes
from fewbit.runtimes import runtime_named

#: A head that shares the table of the embedding, as exporters write it.
TIED = """<ir_version: 8, opset_import: ["" : 17]> g (int64[2,5] ids) => (float[2,5,V] y) {
    e = Gather(table, ids)
    h = MatMul(e, w)
    t = Transpose<perm=[1,0]>(table)
    y = MatMul(h, t)
}"""
SHAPES = {"table": (300, 32), "w": (32, 32)}


def stored(path):
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


def test_a_head_and_an_embedding_that_stay_float_stay_one_table(case, run, error, tmp_path):
    own = case(TIED, **SHAPES).quantize(runtime_named("ort-cpu"), weight="int4 g32", given=None, only=["w", "MatMul:h"])
    assert list(own.model.layers) == ["MatMul:h"]
    written = own.write(runtime_named("ort-cpu"), tmp_path / "m.onnx")
    assert [tuple(tensor.dims) for tensor in stored(tmp_path / "m.onnx").values() if 300 in tensor.dims] == [(300, 32)]
    assert written.nbytes < weight_bytes(own.model.graph) - SHAPES["table"][0] * 32 * 4
    assert error(run(tmp_path / "m.onnx", own.feeds)["y"], own.simulated()) < 1e-6


def test_a_head_that_stays_float_beside_a_quantized_embedding_has_a_table_of_its_own(case, run, error, tmp_path):
    own = case(TIED, **SHAPES).quantize(runtime_named("ort-cpu"), weight="int4 g32", given=None, only=["Gather:e"])
    own.write(runtime_named("ort-cpu"), tmp_path / "m.onnx")
    floats = [tensor for tensor in stored(tmp_path / "m.onnx").values() if 300 in tensor.dims and tensor.data_type == 1]
    assert sorted(tuple(tensor.dims) for tensor in floats) == [(32, 300), (300, 1)]
    assert error(run(tmp_path / "m.onnx", own.feeds)["y"], own.simulated()) < 1e-6


def test_a_float16_weight_under_a_cast_stays_float16(case, run, tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[5,32] x) => (float[5,32] y) {
        c = Cast<to=1>(half)
        t = Transpose(c)
        h = MatMul(x, t)
        y = MatMul(h, w)
    }"""
    half = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float16)
    own = case(text, half=half, w=(32, 32)).quantize(runtime_named("ort-cpu"), given=None, only=["MatMul:y"])
    own.write(runtime_named("ort-cpu"), tmp_path / "m.onnx")
    kept = stored(tmp_path / "m.onnx")["half"]
    assert kept.data_type == onnx.TensorProto.FLOAT16
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(kept), half)
    level_4 = 2e-2  # of packed int8 weights
    made = run(tmp_path / "m.onnx", own.feeds)["y"]
    assert np.abs(made - own.simulated()).max() < level_4 * np.abs(made).max()


@pytest.mark.parametrize("given", ["int8 static", "int8 tensor", None])
def test_inputs_and_outputs_keep_their_names_types_and_shapes(case, tmp_path, given):
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,32] x) => (float[N,7] y, float[N,32] r)'
    text = f"{head} {{ r = Relu(x) y = MatMul(r,w) }}"
    runtime = runtime_named("ort-cpu")
    own = case(text, w=(32, 7)).quantize(runtime, given=given, output="int8 static" if given == "int8 static" else None)
    own.write(runtime, tmp_path / "m.onnx")
    before, after = own.proto.graph, onnx.load(tmp_path / "m.onnx").graph
    assert [str(value) for value in after.input] == [str(value) for value in before.input]
    assert [str(value) for value in after.output] == [str(value) for value in before.output]


def test_the_float_model_is_left_as_it_was(case, tmp_path):
    own = case(TIED, **SHAPES)
    before = onnx.printer.to_text(onnx.ModelProto.FromString(_bytes(own)))
    own.quantize(runtime_named("ort-cpu")).write(runtime_named("ort-cpu"), tmp_path / "m.onnx")
    assert onnx.printer.to_text(onnx.ModelProto.FromString(_bytes(own))) == before


def _bytes(own):
    import onnx_ir as ir

    return ir.to_proto(own.model.graph).SerializeToString()


@pytest.mark.parametrize(
    ("weight", "given"), [("int4 g32", None), ("int8", "int8 static"), ("int4 channel", "int8 tensor")]
)
def test_many_numbers_lie_in_a_file_of_their_own(case, run, error, tmp_path, monkeypatch, weight, given):
    monkeypatch.setattr(file, "INLINE", 1000)
    runtime = runtime_named("ort-cpu")
    own = case(TIED, **SHAPES).quantize(runtime, weight=weight, given=given)
    own.write(runtime, tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx").stat().st_size < 10_000 < (tmp_path / "m.onnx.data").stat().st_size
    assert error(run(tmp_path / "m.onnx", own.feeds)["y"], own.simulated()) < 1e-5
    assert fusion(own.model, runtime, tmp_path / "m.onnx").floats == {}
