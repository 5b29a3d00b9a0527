"""Every other form of a layer: dynamic, packed, blocked, float8, 16 bits; each against the simulation."""

from dataclasses import replace

import onnx
import pytest
from openvino_models import compiled

from fewbit.errors import CheckpointError
from fewbit.runtimes import runtime_named

ROWS = '<ir_version: 8, opset_import: ["" : 13]> g (float[2,5,96] x) => (float[2,5,N] y) { %s }'
FLAT = '<ir_version: 8, opset_import: ["" : 13]> g (float[5,96] x) => (float[5,N] y) { %s }'
IMAGE = '<ir_version: 8, opset_import: ["" : 13]> g (float[2,4,9,9] x) => (float[2,N,H,W] y) { %s }'
IDS = '<ir_version: 8, opset_import: ["" : 13]> g (int64[2,5] x) => (float[2,5,96] y) { %s }'
LINEAR = {
    "matmul": (ROWS % "y = MatMul(x,w)", {"w": (96, 7)}),
    "matmul, add": (ROWS % "m = MatMul(x,w) y = Add(m,b)", {"w": (96, 7), "b": (7,)}),
    "gemm": (FLAT % "y = Gemm(x,w,b)", {"w": (96, 7), "b": (7,)}),
    "gemm, all options": (FLAT % "y = Gemm<transB=1,alpha=0.5,beta=2.0>(x,w,b)", {"w": (7, 96), "b": (1, 7)}),
}
CONVOLUTIONS = {
    "conv": (IMAGE % "y = Conv<pads=[1,1,1,1],strides=[2,2]>(x,w,b)", {"w": (6, 4, 3, 3), "b": (6,)}),
    "conv in groups": (IMAGE % "y = Conv<group=2,dilations=[2,2]>(x,w)", {"w": (6, 2, 3, 3)}),
}
GATHER = {"gather": (IDS % "y = Gather(w,x)", {"w": (8, 96)})}
#: Level 4 of MatMulNBits rounds inputs to int8 by blocks; a float8 or 16-bit product is exact but for float32 sums.
EXACT, ROUNDED = 1e-6, 2e-2


def first(made):
    return next(iter(made.values()))


def check(case, run, error, tmp_path, source, runtime, bound, *, read=None, **schemes):  # noqa: PLR0913
    """Write a case, hold it against the simulation, and see the comparison fail when a scale is doubled."""
    text, shapes = source
    own = case(text, **shapes).quantize(runtime, **schemes)
    written = own.write(runtime, tmp_path / "m.onnx")
    read = read or (lambda path: first(run(path, own.feeds)))
    assert error(read(tmp_path / "m.onnx"), own.simulated()) < bound
    expected = own.simulated()
    own.damaged().write(runtime, tmp_path / "wrong.onnx")
    assert error(read(tmp_path / "wrong.onnx"), expected) > 0.2
    return written


@pytest.mark.parametrize("name", [*LINEAR, *CONVOLUTIONS])
@pytest.mark.parametrize("weight", ["int8", "int8 tensor", "int4 channel"])
def test_dynamic_layers_compute_in_integers_with_the_range_of_each_input(case, run, error, tmp_path, name, weight):
    source = {**LINEAR, **CONVOLUTIONS}[name]
    runtime = runtime_named("ort-cpu")
    written = check(case, run, error, tmp_path, source, runtime, EXACT, weight=weight, given="int8 tensor")
    assert "DynamicQuantizeLinear" in first(written.forms)


def test_layers_that_read_the_same_value_share_its_dynamic_rounding(case, tmp_path):
    runtime = runtime_named("ort-cpu")
    text = ROWS % "a = MatMul(x,w) b = MatMul(x,v) y = Add(a,b)"
    case(text, w=(96, 7), v=(96, 7)).quantize(runtime, given="int8 tensor").write(runtime, tmp_path / "m.onnx")
    nodes = onnx.load(tmp_path / "m.onnx").graph.node
    assert [node.op_type for node in nodes].count("DynamicQuantizeLinear") == 1


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("weight", ["int4 g32", "int4 g32 asym", "int3 g16", "int4 channel", "uint4 g64 asym"])
def test_four_bit_weights_alone_are_exact_in_onnxruntime(case, run, error, tmp_path, name, weight):
    runtime = runtime_named("ort-cpu")
    written = check(case, run, error, tmp_path, LINEAR[name], runtime, EXACT, weight=weight, given=None)
    assert first(written.forms) == "MatMulNBits, 4 bits, accuracy level 1"
    assert not written.notes


@pytest.mark.parametrize("weight", ["int2 g32 asym", "int8", "int8 g32 asym", "int8 tensor", "int6 g16"])
def test_two_and_eight_bit_weights_are_packed_at_a_level_that_rounds_inputs_and_say_so(
    case, run, error, tmp_path, weight
):
    runtime = runtime_named("ort-cpu")
    written = check(case, run, error, tmp_path, LINEAR["gemm"], runtime, ROUNDED, weight=weight, given=None)
    assert first(written.forms).endswith("accuracy level 4")
    assert "accuracy level 4" in written.notes[0]


def in_openvino(feeds):
    """Return a function that runs a file in OpenVINO as it is: by default it would round inputs of packed products."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_NUM_THREADS": "1"}

    def read(path):
        return compiled(path, options)(feeds)[0]

    return read


@pytest.mark.parametrize("name", [*LINEAR, "gather"])
@pytest.mark.parametrize("weight", ["int4 g32", "int4 g32 asym", "int8", "int8 g32", "int8 tensor", "int2 g16"])
def test_weights_alone_behind_a_dequantizelinear_are_exact_in_openvino(case, run, error, tmp_path, name, weight):
    source = {**LINEAR, **GATHER}[name]
    runtime = runtime_named("openvino")
    probe = case(source[0], **source[1])
    written = check(
        case, run, error, tmp_path, source, runtime, EXACT, read=in_openvino(probe.feeds), weight=weight, given=None
    )
    assert first(written.forms).startswith("DequantizeLinear")
    assert written.opset == (13 if weight in ("int8", "int8 tensor") else 21)


@pytest.mark.parametrize("weight", ["int4 g32", "int8", "int8 g16"])
@pytest.mark.parametrize("word", ["tensorrt", "migraphx"])
def test_onnxruntime_reads_blocks_exactly_at_level_1_and_with_rounded_inputs_by_default(
    case, run, error, tmp_path, weight, word
):
    own = case(LINEAR["matmul"][0], **LINEAR["matmul"][1]).quantize(runtime_named(word), weight=weight, given=None)
    own.write(runtime_named(word), tmp_path / "m.onnx")
    # With the precision of `run` onnxruntime 1.31 gives zero points another shape than scales, and fails.
    usual = {"session__x64quantprecision": "0"}
    exact = {**usual, "session__qdq_matmulnbits_accuracy_level": "1"}
    assert error(first(run(tmp_path / "m.onnx", own.feeds, **exact)), own.simulated()) < EXACT
    assert EXACT < error(first(run(tmp_path / "m.onnx", own.feeds, **usual)), own.simulated()) < ROUNDED


@pytest.mark.parametrize(
    "weight", ["int8", "int4 channel", "int2 g16", "int4 g32 asym", "int8 g32", "int8 tensor asym"]
)
def test_embeddings_dequantize_the_rows_that_are_asked_for(case, run, error, tmp_path, weight):
    runtime = runtime_named("ort-cpu")
    written = check(case, run, error, tmp_path, GATHER["gather"], runtime, EXACT, weight=weight, given=None)
    assert first(written.forms).startswith("GatherBlockQuantized")


@pytest.mark.parametrize("weight", ["e4m3", "e4m3 tensor", "e5m2", "e4m3fnuz"])
@pytest.mark.parametrize("name", ["matmul", "gemm", "gemm, all options", "conv"])
@pytest.mark.parametrize("given", ["e4m3 static", None])
def test_float8_files_load_in_onnxruntime_and_compute_what_their_codes_stand_for(
    case, run, error, tmp_path, name, weight, given
):
    source = {**LINEAR, **CONVOLUTIONS}[name]
    written = check(case, run, error, tmp_path, source, runtime_named("ort-cpu"), EXACT, weight=weight, given=given)
    assert written.opset == 19


@pytest.mark.parametrize(
    ("weight", "given"), [("e4m3 g32", None), ("int4 g32", "int8 static"), ("int4 g16", "int16 static")]
)
@pytest.mark.parametrize("name", ["matmul", "gemm"])
def test_blocks_behind_a_dequantizelinear_in_onnxruntime(case, run, error, tmp_path, name, weight, given):
    written = check(
        case, run, error, tmp_path, LINEAR[name], runtime_named("ort-cpu"), 1e-5, weight=weight, given=given
    )
    assert written.opset == 21


def test_onnxruntime_misreads_blocks_of_bytes_beside_a_rounded_input(case, run, tmp_path):
    """The reason for a rule of the table, so that a version that reads them is noticed."""
    text, shapes = LINEAR["matmul"]
    openly = replace(runtime_named("ort-cpu"), blocks_of_bytes=True)
    own = case(text, **shapes).quantize(openly, weight="int8 g32")
    own.write(openly, tmp_path / "m.onnx")
    with pytest.raises(Exception, match="MatMulIntegerToFloat"):
        run(tmp_path / "m.onnx", own.feeds)
    with pytest.raises(CheckpointError, match="'int8 g32'; use channel"):
        own.write(runtime_named("ort-cpu"), tmp_path / "refused.onnx")


def test_onnxruntime_does_not_load_float8_products_between_q_and_dq(case, run, tmp_path):
    """The reason for weights that a Cast widens, so that a version that loads them is noticed."""
    text, shapes = LINEAR["matmul"]
    openly = replace(runtime_named("ort-cpu"), float8_products=True)
    own = case(text, **shapes).quantize(openly, weight="e4m3", given="e4m3 static")
    own.write(openly, tmp_path / "m.onnx")
    with pytest.raises(Exception, match="float8e4m3fn"):
        run(tmp_path / "m.onnx", own.feeds)


@pytest.mark.parametrize("name", ["matmul, add", "gemm", "conv"])
@pytest.mark.parametrize("given", ["int16 static", "uint16 static", "int16 static sym"])
def test_sixteen_bit_inputs_with_eight_bit_weights(case, run, error, tmp_path, name, given):
    runtime = runtime_named("ort-cpu")
    source = {**LINEAR, **CONVOLUTIONS}[name]
    # Codes of 16 bits are so many that a few inputs lie on the edge of two, a step of 1/65000 of the range apart.
    written = check(case, run, error, tmp_path, source, runtime, 1e-5, weight="int8", given=given)
    assert written.opset == 21
    assert first(written.forms) == "QDQ, computed in float"
