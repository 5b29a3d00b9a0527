"""What onnxruntime makes of a file is told by layer, with the reason where a layer stayed float."""

import numpy as np
import pytest

from fewbit.activation import Activation
from fewbit.checkpoints.onnx.fusion import fusion
from fewbit.checkpoints.onnx.writer import write
from fewbit.errors import CheckpointError
from fewbit.runtimes import runtime_named
from fewbit.schemes.notation import parse_input_scheme

ORT = runtime_named("ort-cpu")
IMAGE = '<ir_version: 8, opset_import: ["" : 17]> g (float[2,4,9,9] x) => (float[2,N,H,W] y) { %s }'
ROWS = '<ir_version: 8, opset_import: ["" : 17]> g (float[5,64] x) => (float[5,N] y) { %s }'


def fused(own, runtime, path):
    own.write(runtime, path)
    return fusion(own.model, runtime, path)


def test_a_cnn_runs_in_integers_from_its_first_rounding_to_its_last(cnn, tmp_path):
    found = fused(cnn().quantize(ORT), ORT, tmp_path / "m.onnx")
    assert list(found.integers.values()) == ["QLinearConv"] * 4 + ["QGemm"]
    assert (found.floats, found.warnings, found.float_nodes) == ({}, (), {})
    assert {"QLinearAdd", "QLinearSigmoid", "QLinearMul", "QLinearGlobalAveragePool"} <= set(found.integer_nodes)


def test_without_rounded_values_convolutions_stay_float_and_each_is_a_warning_with_its_reason(cnn, tmp_path):
    own = cnn().quantize(ORT)
    own.model.values.clear()
    found = fused(own, ORT, tmp_path / "m.onnx")
    # Relu and Clip before a layer that rounds its input vanish in that rounding.
    assert list(found.integers) == ["Conv:c2", "Gemm:y"]
    assert found.missed == ("Conv:c1", "Conv:c3", "Conv:c4")
    assert found.warnings[1] == "Conv:c3 stayed float: its output 'c3' is not rounded; round it too"
    assert found.float_nodes["QuickGelu"] == 1


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_symmetric_ranges_behind_a_relu_are_the_reason_that_is_given(case, tmp_path, kind):
    text, shapes = {
        "Conv": (IMAGE % "c = Conv(x,w) r = Relu(c) y = Neg(r)", {"w": (6, 4, 3, 3)}),
        "Gemm": (ROWS % "c = Gemm(x,w,b) r = Relu(c) y = Neg(r)", {"w": (64, 7), "b": (7,)}),
    }[kind]
    own = case(text, **shapes).quantize(ORT, given="int8 static sym")
    assert not own.model.values["r"].scheme.symmetric  # that is what `place` is for
    assert fused(own, ORT, tmp_path / "placed.onnx").integers
    middle = next(iter(own.model.layers.values())).activations.input
    own.model.values["r"] = Activation(scheme=middle.scheme, scale=own.model.values["r"].scale)
    found = fused(own, ORT, tmp_path / "symmetric.onnx")
    assert found.missed == (f"{kind}:c",)
    assert "behind its Relu the code 0 stands for 0, which is not the lowest" in found.warnings[0]


@pytest.mark.parametrize(
    "nodes", ["y = MatMul(x,w)", "m = MatMul(x,w) y = Add(m,b)", "m = MatMul(x,w) a = Add(m,b) y = Gelu(a)"]
)
@pytest.mark.parametrize("shape", ["5,64", "2,5,64"])
def test_products_of_rows_need_no_rounded_output(case, tmp_path, nodes, shape):
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[{shape}] x) => (float[{shape}] y) {{ {nodes} }}'
    shapes = {"w": (64, 64), "b": (64,)} if "b)" in nodes else {"w": (64, 64)}
    own = case(text, **shapes).quantize(ORT)
    assert not own.model.values
    found = fused(own, ORT, tmp_path / "m.onnx")
    assert found.floats == {}
    assert next(iter(found.integers.values())) in ("QGemm", "MatMulIntegerToFloat")


@pytest.mark.parametrize(
    ("text", "shapes", "schemes", "reason"),
    [
        (ROWS % "y = MatMul(x,w)", {"w": (64, 7)}, {"given": "int16 static"}, "computes with int16 inputs in float"),
        (ROWS % "y = MatMul(x,w)", {"w": (64, 7)}, {"given": "e4m3 static", "weight": "e4m3"}, "with e4m3 inputs"),
        (ROWS % "y = MatMul(x,w)", {"w": (64, 7)}, {"weight": "int4 g32"}, "its weight is 'int4 g32'"),
        (ROWS % "y = MatMul(x,w)", {"w": (64, 7)}, {"given": None, "weight": "int4 g8"}, "is dequantized whenever"),
        (IMAGE % "y = ConvTranspose(x,w)", {"w": (4, 6, 3, 3)}, {}, "has no integer ConvTranspose"),
        (IMAGE % "y = Conv(x,w)", {"w": (6, 4, 3, 3)}, {"given": None}, "is dequantized whenever it is used"),
    ],
)
def test_what_was_to_be_float_is_told_and_is_no_warning(case, tmp_path, text, shapes, schemes, reason):
    found = fused(case(text, **shapes).quantize(ORT, **schemes), ORT, tmp_path / "m.onnx")
    assert found.integers == {}
    assert found.warnings == ()
    assert reason in next(iter(found.floats.values()))


@pytest.mark.parametrize(
    ("weight", "given", "operator"),
    [
        ("int8", "int8 tensor", "DynamicQuantizeMatMul"),
        ("int4 g32", None, "MatMulNBits"),
        ("int8", None, "MatMulNBits"),
    ],
)
def test_dynamic_and_packed_layers_are_found_under_their_operators(case, tmp_path, weight, given, operator):
    own = case(ROWS % "y = MatMul(x,w)", w=(64, 7)).quantize(ORT, weight=weight, given=given)
    assert fused(own, ORT, tmp_path / "m.onnx").integers == {"MatMul:y": operator}


def test_a_file_that_onnxruntime_does_not_load_is_named(case, tmp_path):
    own = case(ROWS % "y = MatMul(x,w)", w=(64, 7)).quantize(ORT)
    own.write(ORT, tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes((tmp_path / "m.onnx").read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"does not load .*m\.onnx"):
        fusion(own.model, ORT, tmp_path / "m.onnx")


#: The values that an operator of the tables reads, what else it is told, and its shape; every one must be here.
OPERATORS = {
    "Add": "Add(a,b)", "Mul": "Mul(a,b)", "Concat": "Concat<axis=1>(a,b)", "Sigmoid": "Sigmoid(a)",
    "Softmax": "Softmax<axis=1>(a)", "LeakyRelu": "LeakyRelu<alpha=0.1>(a)",
    "AveragePool": "AveragePool<kernel_shape=[2,2]>(a)", "GlobalAveragePool": "GlobalAveragePool(a)",
    "MaxPool": "MaxPool<kernel_shape=[2,2]>(a)", "Flatten": "Flatten(a)", "Transpose": "Transpose<perm=[0,2,3,1]>(a)",
    "Reshape": "Reshape(a,shape)", "Squeeze": "Squeeze(a,one)",
    "Unsqueeze": "Unsqueeze(a,one)",
    "Slice": "Slice(a,zero,one,one)", "Gather": "Gather<axis=1>(a,zero)", "Expand": "Expand(a,expand)",
    "Tile": "Tile(a,tile)", "DepthToSpace": "DepthToSpace<blocksize=2>(a)", "ReduceMax": "ReduceMax<axes=[1]>(a)",
    "ReduceMin": "ReduceMin<axes=[1]>(a)", "Resize": 'Resize<mode="nearest">(a,none,scales)',
    "Split": "Split<axis=1>(a)",
}  # fmt: skip
CONSTANTS = {
    "shape": np.asarray([2, -1]), "zero": np.asarray([0]), "one": np.asarray([1]),
    "expand": np.asarray([3, 2, 4, 8, 8]), "tile": np.asarray([1, 1, 2, 1]), "none": np.zeros(0, np.float32),
    "scales": np.asarray([1, 1, 2, 2], np.float32),
}  # fmt: skip


def test_every_operator_of_the_table_is_tried():
    assert set(OPERATORS) == ORT.carriers | ORT.movers


@pytest.mark.parametrize("name", sorted(OPERATORS))
@pytest.mark.parametrize("alike", [True, False])
def test_operators_of_the_table_carry_integers_and_movers_only_under_one_scale(case, tmp_path, name, alike):
    """The table is what this onnxruntime does; movers between two scales are the negative control."""
    call = OPERATORS[name]
    shape = "float[2,1,8,8]" if name == "Squeeze" else "float[2,4,8,8]"
    made, read = ("s, t", "y = Neg(s) z = Neg(t)") if name == "Split" else ("s", "y = Neg(s)")
    head = f'<ir_version: 8, opset_import: ["" : 17]> g ({shape} a, {shape} b) => (float[N] y'
    text = f"{head}{', float[N] z' if name == 'Split' else ''}) {{ {made} = {call} {read} }}"
    values = [*call.split("(")[1].strip(")").split(","), *made.split(", ")]
    constants = {key: array for key, array in CONSTANTS.items() if key in values}
    own = case(text, **constants)
    for value in own.model.graph.graph.outputs:
        value.shape = None
    scheme = parse_input_scheme("int8 static")
    for value, scale in {"a": 0.02, "b": 0.02, "s": 0.02 if alike else 0.03, "t": 0.02 if alike else 0.03}.items():
        if value in values:
            own.model.values[value] = Activation(scheme=scheme, scale=np.float32(scale), zero_point=np.float32(-8))
    write(own.model, ORT, tmp_path / "m.onnx")
    found = fusion(own.model, ORT, tmp_path / "m.onnx")
    floats = set(found.float_nodes) - {"Neg"}
    assert floats == (set() if alike or name in ORT.carriers else {name})
