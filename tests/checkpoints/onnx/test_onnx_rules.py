"""What is written keeps the documented rules of runtimes that cannot run here, and a graph that breaks one is found."""

import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from fewbit.checkpoints.onnx.rules import RULES, violations
from fewbit.onnx_graph.file import read_model
from fewbit.runtimes import runtime_named

ORT = runtime_named("ort-cpu")


@pytest.mark.parametrize("word", sorted(RULES))
@pytest.mark.parametrize("given", ["int8 static sym", "e4m3 static"])
def test_a_cnn_keeps_every_rule_of_its_runtime(cnn, run, error, tmp_path, word, given):
    runtime = runtime_named(word)
    own = cnn().quantize(runtime, weight=given.split()[0], given=given)
    own.write(runtime, tmp_path / "m.onnx")
    assert violations(read_model(tmp_path / "m.onnx"), runtime) == []
    if given.startswith("int8"):
        assert error(run(tmp_path / "m.onnx", own.feeds)["y"], own.simulated()) < 1e-3


@pytest.mark.parametrize("word", sorted(RULES))
def test_a_file_for_onnxruntime_breaks_them(cnn, tmp_path, word):
    cnn().quantize(ORT).write(ORT, tmp_path / "m.onnx")
    found = "\n".join(violations(read_model(tmp_path / "m.onnx"), runtime_named(word)))
    for text in (
        "its zero point is not 0",
        "int32 codes; biases stay float",
        "codes of type uint8",
        "rounds the output",
    ):
        assert text in found


@pytest.mark.parametrize("word", sorted(RULES))
@pytest.mark.parametrize("weight", ["int4 g32", "int8 g32"])
def test_weights_alone_in_blocks_break_none(case, tmp_path, word, weight):
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[5,64] x) => (float[5,7] y) { y = MatMul(x,w) }'
    runtime = runtime_named(word)
    case(text, w=(64, 7)).quantize(runtime, weight=weight, given=None).write(runtime, tmp_path / "m.onnx")
    assert violations(read_model(tmp_path / "m.onnx"), runtime) == []


#: A residual block between its roundings, with one thing in each of these replaced.
SOUND = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,2,4,4] x) => (float[1,2,4,4] y)
<float s={{0.1}}, int8 z={{{zero}}}, uint8 u={{0}}, float[2] v={{0.1,0.2}}, int8[2] zz={{0,0}}, int32[2] ib={{1,2}},
 float[2] b={{1,2}}>
{{
    q = QuantizeLinear({source}, {scale}, {kind})
    d = DequantizeLinear(q, {scale}, {kind})
    wd = DequantizeLinear<axis={axis}>(w, v, zz)
    bias = {bias}
    c = Conv<pads=[1,1,1,1]>({data}, wd, bias)
    skip = {skip}
    a = Add(c, skip)
    r = Relu(a)
    {end}
}}"""
USUAL = {
    "zero": "0", "source": "x", "scale": "s", "kind": "z", "axis": "0", "bias": "Identity(b)", "data": "d",
    "skip": "Identity(d)", "end": "y = Neg(r)",
}  # fmt: skip
BROKEN = {
    "its zero point is not 0": {"zero": "3"},
    "codes of type uint8": {"kind": "u"},
    "int32 codes; biases stay float": {"bias": "DequantizeLinear(ib, v)"},
    "its scale is not one number": {"scale": "v", "kind": "zz"},
    "scales of its weight along axis 1, not 0": {"axis": "1"},
    "its weight is rounded and its input is not": {"data": "x"},
    "adds to a rounded convolution what is not rounded": {"skip": "Neg(x)"},
    "rounds the output of Conv": {"end": "rq = QuantizeLinear(r, s, z) rd = DequantizeLinear(rq, s, z) y = Neg(rd)"},
}


def graph(**changed):
    proto = parser.parse_model(SOUND.format(**{**USUAL, **changed}))
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.INT8, [2, 2, 3, 3], list(range(36)))
    proto.graph.initializer.append(weight)
    model = ir.from_proto(proto)
    ir.passes.common.IdentityEliminationPass()(model)
    return model


@pytest.mark.parametrize("word", sorted(RULES))
def test_the_sound_block_breaks_no_rule(word):
    assert violations(graph(), runtime_named(word)) == []


@pytest.mark.parametrize("text", BROKEN)
def test_each_rule_finds_the_graph_that_breaks_it_and_nothing_else(text):
    found = violations(graph(**BROKEN[text]), runtime_named("tensorrt"))
    assert any(text in own for own in found)
    others = {own.split(": ", 1)[1] for own in found if text not in own}
    # An int32 bias is no type of codes either, and one scale for a channel at an input has its own zero points.
    assert not others


def test_a_float_weight_under_a_rounded_input_is_found():
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[2,4] x) => (float[2,4] y)
    <float s={0.1}, int8 z={0}, float[4,4] w={1,2,3,4,1,2,3,4,1,2,3,4,1,2,3,4}>
    { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w) }"""
    model = ir.from_proto(parser.parse_model(text))
    found = violations(model, runtime_named("migraphx"))
    assert found == ["MatMul 'y': its input is rounded and its weight is not"]


@pytest.mark.parametrize(("operator", "axis", "right"), [("ConvTranspose", 0, False), ("ConvTranspose", 1, True)])
def test_scales_of_a_transposed_convolution_lie_along_axis_1(operator, axis, right):
    text = f"""<ir_version: 10, opset_import: ["" : 21]> g (float[1,2,4,4] x) => (float[1,2,6,6] y)
    <float s={{0.1}}, int8 z={{0}}, float[2] v={{0.1,0.2}}> {{
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        k = DequantizeLinear<axis={axis}>(w, v) y = {operator}(d, k)
    }}"""
    proto = parser.parse_model(text)
    proto.graph.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.INT8, [2, 2, 3, 3], list(range(36))))
    assert (violations(ir.from_proto(proto), runtime_named("tensorrt")) == []) == right
