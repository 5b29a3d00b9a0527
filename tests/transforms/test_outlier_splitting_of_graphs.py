"""Channels of ONNX graphs split: exact behind element-wise functions, by a Gather behind norms; files."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import fewbit as fb
from fewbit.frontends.onnx.elementwise import Elementwise
from fewbit.frontends.onnx.frontend import OnnxFrontend
from fewbit.onnx_graph.live import OnnxModel
from fewbit.transforms.outlier_splitting import OutlierSplitting

pytestmark = pytest.mark.usefixtures("one_thread")
FRONTEND = OnnxFrontend()
GELU = "e = Div(u, root)  f = Erf(e)  g = Add(f, one)  h = Mul(u, g)  v = Mul(h, half)"
NUMBERS = {
    "root": np.asarray(2**0.5, np.float32), "one": np.asarray([1.0], np.float32), "half": np.asarray(0.5, np.float32),
}  # fmt: skip
MLP = """(float[n, 24] x) => ({outputs}float[n, 20] y) {{
    s = MatMul(x, "up.weight")  u = Add(s, "up.bias")  {between}
    y = Gemm<transB=1>(v, "down.weight", "down.bias") }}"""


def constants(seed=0):
    draw = np.random.default_rng(seed)
    down = (draw.normal(size=(20, 32)) / 6).astype(np.float32)
    down[:, 3] *= 12.0
    down[:, 30] *= 6.0
    up = (draw.normal(size=(24, 32)) / 5).astype(np.float32)
    biases = {name: draw.normal(size=width).astype(np.float32) for name, width in {"up": 32, "down": 20}.items()}
    return {"up.weight": up, "down.weight": down, **{f"{name}.bias": own for name, own in biases.items()}, **NUMBERS}


def graph(onnx_model, between, outputs="", **further):
    return onnx_model(MLP.format(between=between, outputs=outputs), {**constants(), **further}, opset=20)


def live(proto):
    return OnnxModel.of(ir.from_proto(proto), Path("test"))


def inputs(shape=(16, 24), seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def split(model, batch, **options):
    return OutlierSplitting(**{"multiple": 4, **options})(model, FRONTEND, batch)


def run(model, batch):
    return next(iter(FRONTEND.run(model, batch).values()))


@pytest.mark.parametrize(
    "between",
    [
        "v = Relu(u)",
        "v = Identity(u)",
        GELU,
        'v = Gelu<approximate="tanh">(u)',
        "t = Sigmoid(u)  v = Mul(u, t)",
        "a = PRelu(u, slopes)  b = Sub(a, slopes)  v = Tanh(b)",
        "l = Less(u, half)  a = Softplus(u)  v = Where(l, a, u)",
    ],
)
@pytest.mark.parametrize("bits", [0, 4])
def test_behind_any_elementwise_function_the_wider_graph_computes_the_same(onnx_model, between, bits):
    model = live(graph(onnx_model, between, slopes=np.linspace(-1, 1, 32, dtype=np.float32)))
    batch, other = inputs(), inputs(seed=2)
    expected, before = run(model, other), model.graph
    applied = split(model, batch, bits=bits)
    assert applied.sentences == (
        "outlier-splitting: 4 channels were split on 1 link: up",
        "outlier-splitting: up: what goes in cannot get wider; gather = true copies channels",
    )
    # Sums of 36 products instead of 32.
    np.testing.assert_allclose(run(model, other), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert model.found["up"].layer.shape == (36, 24)
    assert model.found["down"].layer.shape == (20, 36)
    largest = np.abs(model.found["down"].weight.const_value.numpy()).max()
    assert largest < 0.6 * np.abs(constants()["down.weight"]).max()
    applied.restore()
    assert model.graph is before
    np.testing.assert_array_equal(run(model, other), expected)


@pytest.mark.parametrize(
    ("between", "outputs"),
    [
        ("v = Softmax<axis=-1>(u)", ""),
        ("v = LayerNormalization(u, gains)", ""),
        ("v = Relu(u)  m = ReduceSum(v)", "float m, "),  # one more channel would count twice
        ("v = Relu(u)", "float[n, 32] u, "),
        ("a = Relu(u)  v = CumSum(a, last)", ""),
    ],
)
def test_what_is_no_function_of_each_number_alone_keeps_its_width_and_is_copied_if_asked(onnx_model, between, outputs):
    further = {"gains": np.ones(32, np.float32), "last": np.asarray(1)}
    model = live(graph(onnx_model, between, outputs, **further))
    before, batch = model.graph, inputs()
    expected = FRONTEND.run(model, batch)["y"]
    applied = split(model, batch)
    assert applied.sentences[0] == "outlier-splitting: no channel could be split"
    assert model.graph is before
    applied = split(model, batch, gather=True)
    assert applied.sentences == (
        "outlier-splitting: 8 channels were split on 2 links, copied before what reads them: up and 1 more",
    )
    assert model.found["up"].layer.shape == (32, 28)
    found = FRONTEND.run(model, batch)["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


GATED = """(float[n, 4, 8] x) => (float[n, 4, 8] y) {
    g0 = MatMul(x, "gate.weight")  g1 = Sigmoid(g0)  g = Mul(g0, g1)  u0 = MatMul(x, "up.weight")
    u1 = Add(u0, "up.bias")  m = Mul(g, u1)  y = MatMul(m, "down.weight") }"""
GATES = {"gate.weight": (8, 12), "up.weight": (8, 12), "up.bias": (12,), "down.weight": (12, 8)}


def test_both_halves_of_a_gated_layer_get_the_rows_and_one_gather_serves_both(onnx_model):
    model, batch = live(onnx_model(GATED, GATES)), inputs((2, 4, 8))
    expected = run(model, batch)
    applied = split(model, batch, gather=True)
    shapes = {name: own.layer.shape for name, own in model.found.items()}
    assert shapes == {"gate": (16, 12), "up": (16, 12), "down": (8, 16)}
    assert [node.op_type for node in model.graph.graph].count("Gather") == 1
    assert "4 channels were split on 1 link: " in applied.sentences[0]
    np.testing.assert_allclose(run(model, batch), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_layers_that_share_a_weight_stay(onnx_model):
    text = '(float[n, 8] x) => (float[n, 8] y) { u = MatMul(x, "w.weight")  r = Relu(u)  y = MatMul(r, "w.weight") }'
    model, batch = live(onnx_model(text, {"w.weight": (8, 8)})), inputs((4, 8))
    assert split(model, batch, gather=True).sentences == ("outlier-splitting: no channel could be split",)


def test_a_way_that_is_wrong_is_found_by_the_run_and_others_are_kept(onnx_model, monkeypatch):
    text = """(float[n, 8] x) => (float[n, 6] y) { a = MatMul(x, "a.weight")  r = Relu(a)  b = MatMul(r, "b.weight")
        s = Relu(b)  y = MatMul(s, "c.weight") }"""
    shapes = {"a.weight": (8, 12), "b.weight": (12, 10), "c.weight": (10, 6)}
    model, batch = live(onnx_model(text, shapes)), inputs((4, 8))
    expected, right = run(model, batch), Elementwise.widen

    def wrong(self, sources):
        right(self, np.sort(sources) if self.names == ["a"] else sources)

    monkeypatch.setattr(Elementwise, "widen", wrong)
    assert split(model, batch).sentences[0] == "outlier-splitting: 4 channels were split on 1 link: b"
    np.testing.assert_allclose(run(model, batch), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("between", ["v = Relu(u)", GELU])
def test_outliers_cost_less_where_a_row_has_one_scale_and_the_file_holds_the_wider_layers(
    onnx_model, between, tmp_path
):
    proto, batches = graph(onnx_model, between), [inputs(seed=seed) for seed in range(4)]
    rules = [fb.Rule(kind="linear", weight="int4 channel")]
    table = {"name": "outlier-splitting", "multiple": 4}
    plain, wider = (
        fb.quantize(proto, fb.Recipe(rules, transforms=own), calibration=batches[:3], evaluation=batches[3:])
        for own in ((), (table,))
    )
    assert wider.report.output_sqnr > plain.report.output_sqnr + 1.0
    assert [row.layer.shape for row in wider.plan.rows] == [(36, 24), (20, 36)]
    path = wider.save(tmp_path / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x": batches[0]})
    (simulated,) = wider.run(batches[0]).values()
    np.testing.assert_allclose(found, simulated, rtol=0, atol=1e-4 * np.abs(simulated).max())


def test_fixed_ranges_behind_a_gather_run_in_integers(onnx_model, tmp_path):
    proto, batches = graph(onnx_model, "v = LayerNormalization(u, gains)", gains=np.ones(32, np.float32)), [inputs()]
    rules = [fb.Rule(kind="linear", weight="int8", input="int8 tensor asym static")]
    table = {"name": "outlier-splitting", "multiple": 4, "gather": True}
    result = fb.quantize(proto, fb.Recipe(rules, transforms=[table]), to="ort-cpu", calibration=batches)
    path = result.save(tmp_path / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x": batches[0]})
    (simulated,) = result.run(batches[0]).values()
    # Codes that round to a neighbour move an output by one of 255 steps at most.
    np.testing.assert_allclose(found, simulated, rtol=0, atol=np.abs(simulated).max() / 100)


def test_without_data_random_inputs_show_that_the_graph_stays_the_same(onnx_model):
    assert split(live(graph(onnx_model, GELU)), None).sentences[0].endswith("split on 1 link: up")
