"""Casts in ONNX files: the graph in 16 bits, float32 where numbers overflow; and single layers of it."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from openvino_models import compiled
from torch import nn

import fewbit as fb
from fewbit.errors import PlanError

GRAPH = """<ir_version: 8, opset_import: ["" : 17]> net (float[n, 3, 8, 8] x) => (float[n, 10] y)
<float big={1000}, float small={0.001}> {
    a = Conv<pads=[1, 1, 1, 1]>(x, "stem.weight", "stem.bias")
    b = Relu(a)
    c = Mul(b, big)
    d = Mul(c, big)
    e = Mul(d, small)
    f = Mul(e, small)
    g = GlobalAveragePool(f)
    h = Flatten(g)
    y = Gemm<transB=1>(h, "fc.weight", "fc.bias")
}"""
SHAPES = {"stem.weight": (8, 3, 3, 3), "stem.bias": (8,), "fc.weight": (10, 8), "fc.bias": (10,)}


def model():
    draw = np.random.default_rng(0)
    proto = onnx.parser.parse_model(GRAPH)
    for name, shape in SHAPES.items():
        proto.graph.initializer.append(numpy_helper.from_array(draw.normal(size=shape).astype(np.float32), name))
    return proto


def batches(count=3):
    return [np.random.default_rng(n).normal(size=(4, 3, 8, 8)).astype(np.float32) for n in range(count)]


def ran(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def apart(actual, expected):
    """Return the root mean square of the difference in units of that of `expected`."""
    difference = actual.astype(np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(np.square(expected, dtype=np.float64))))


def remarks(path):
    return json.loads(path.with_name(f"{path.stem}.report.json").read_text())["remarks"]


def types(path):
    return {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}


@pytest.fixture
def expected(tmp_path):
    onnx.save(model(), tmp_path / "float.onnx")
    return ran(tmp_path / "float.onnx", batches()[0])


def test_a_graph_becomes_float16_but_where_values_overflow_and_its_ends(expected, tmp_path):
    result = fb.quantize(model(), "fp16", to="ort-cpu", calibration=batches(), evaluation=batches(1))
    path = result.save(tmp_path / "half.onnx")
    onnx.checker.check_model(path, full_check=True)
    told = remarks(path)
    assert "7 nodes compute in float16 for ort-cpu, 2 in float32, with 4 casts between them" in told
    assert any(text.startswith("float32: value d reaches ") for text in told)
    assert types(path)["stem.weight/half"] == TensorProto.FLOAT16
    assert ran(path, batches()[0]).dtype == np.float32
    # 11 bits, and sums of them; the reference of onnx computes them in float16, onnxruntime in float32.
    assert apart(ran(path, batches()[0]), expected) < 2e-3
    assert apart(ReferenceEvaluator(str(path)).run(None, {"x": batches()[0]})[0], expected) < 5e-3


def test_without_data_nothing_is_checked_which_is_said_and_overflows(tmp_path):
    result = fb.quantize(model(), "fp16", to="ort-cpu")
    path = result.save(tmp_path / "blind.onnx")
    assert "values between layers were not checked for overflow: there was no data" in remarks(path)
    with pytest.warns(RuntimeWarning):
        assert not np.isfinite(ReferenceEvaluator(str(path)).run(None, {"x": batches()[0]})[0]).all()


def test_a_layer_that_overflows_is_kept_by_the_plan_and_float32_in_the_file(tmp_path):
    proto = model()
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "fc.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(10, 1e5, np.float32), "fc.bias"))
    result = fb.quantize(proto, "fp16", to="ort-cpu", calibration=batches())
    assert "its outputs reach 100,0" in result.report.layers[-1].overflow
    path = result.save(tmp_path / "half.onnx")
    assert types(path)["fc.weight"] == TensorProto.FLOAT
    assert any(text.startswith("float32: fc is kept float") for text in remarks(path))
    assert np.isfinite(ReferenceEvaluator(str(path)).run(None, {"x": batches()[0]})[0]).all()


def test_what_a_recipe_keeps_stays_float32(expected, tmp_path):
    recipe = fb.Recipe([fb.keep("stem"), fb.Rule(".*", weight="fp16", input="fp16")])
    result = fb.quantize(model(), recipe, to="ort-cpu", calibration=batches())
    path = result.save(tmp_path / "mixed.onnx")
    onnx.checker.check_model(path, full_check=True)
    assert types(path)["stem.weight"] == TensorProto.FLOAT
    assert types(path)["fc.fp16"] == TensorProto.FLOAT16
    # Rules of one's own cast layers, and nothing between them.
    assert not any("nodes compute in float16" in text for text in remarks(path))
    assert apart(ran(path, batches()[0]), expected) < 2e-3


def test_layers_of_other_schemes_stand_beside_those_that_are_cast(expected, tmp_path):
    rules = [fb.Rule("stem", weight="int8", input="int8 static"), fb.Rule("fc", weight="fp16")]
    result = fb.quantize(model(), fb.Recipe(rules), to="ort-cpu", calibration=batches())
    path = result.save(tmp_path / "mixed.onnx")
    kernels = [layer["kernel"] for layer in json.loads((tmp_path / "mixed.report.json").read_text())["layers"]]
    assert kernels == ["onnxruntime QLinearConv, from QDQ", "onnxruntime, in float: its numbers are fp16"]
    assert types(path)["fc.fp16"] == TensorProto.FLOAT16
    assert 1e-3 < apart(ran(path, batches()[0]), expected) < 5e-2  # steps of 1/255 of a range
    with pytest.raises(
        PlanError, match=r"computes in one type, and here are the weight .int8 channel. and the input .fp16."
    ):
        fb.quantize(model(), fb.Recipe([fb.Rule("fc", weight="int8", input="fp16")]), to="ort-cpu")


def test_inputs_and_outputs_are_float16_where_that_is_asked_for(expected, tmp_path):
    result = fb.quantize(model(), "fp16", to="ort-cpu", dtype="float16", calibration=batches())
    path = result.save(tmp_path / "half.onnx")
    onnx.checker.check_model(path, full_check=True)
    made = ran(path, batches()[0].astype(np.float16))
    assert made.dtype == np.float16
    assert apart(made, expected) < 3e-3
    with pytest.raises(PlanError, match="a graph has the types that the model computes in, here float32"):
        fb.quantize(model(), "w8a16", to="ort-cpu", dtype="float16")


def test_bfloat16_runs_in_openvino_and_is_refused_for_onnxruntime(expected, tmp_path):
    result = fb.quantize(model(), "bf16", to="openvino", calibration=batches())
    path = result.save(tmp_path / "half.onnx")
    onnx.checker.check_model(path, full_check=True)
    assert set(types(path).values()) == {TensorProto.BFLOAT16}
    in_openvino = compiled(path, {"INFERENCE_PRECISION_HINT": "f32"})
    assert 1e-4 < apart(in_openvino(batches()[0])[0], expected) < 2e-2  # 8 bits
    with pytest.raises(PlanError, match="ort-cpu computes nothing in bf16; use fp16, or another runtime"):
        fb.quantize(model(), "bf16", to="ort-cpu", calibration=batches())
    # That it has no such product is what onnxruntime itself says.
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        ran(path, batches()[0])


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.up, self.norm = nn.Embedding(300, 16), nn.Linear(16, 32), nn.LayerNorm(32)
        self.conv, self.score = nn.Conv1d(32, 16, 3), nn.Linear(16, 300, bias=False)

    def forward(self, ids):
        x = self.norm(self.up(self.table(ids))).relu()
        return self.score(self.conv(x.transpose(1, 2)).transpose(1, 2))


def test_a_torch_module_becomes_float16_with_its_embedding_and_its_head(tmp_path):
    torch.manual_seed(0)
    words, ids = Words().eval(), torch.randint(0, 300, (2, 9))
    with torch.no_grad():
        floats = words(ids).numpy()
    made = fb.plan(words, "fp16", to="ort-cpu")
    assert [row.becomes for row in made.rows] == ["fp16"] + ["fp16, input fp16"] * 3
    assert made.adaptations == ("table and 1 more: fp16 too, as the whole graph is",)
    assert fb.plan(words, "fp16").rows[0].becomes == "float"
    result = fb.quantize(words, "fp16", to="ort-cpu", calibration=[ids])
    path = result.save(tmp_path / "half.onnx")
    onnx.checker.check_model(path, full_check=True)
    assert TensorProto.FLOAT not in types(path).values()
    assert apart(ran(path, ids.numpy()), floats) < 2e-3
