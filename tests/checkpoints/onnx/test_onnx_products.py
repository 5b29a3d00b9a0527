"""Products inside attention in files: what is computed is what was simulated, in integers where the runtime can."""

import json
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.checkpoints.onnx.rules import violations
from fewbit.errors import PlanError
from fewbit.frontends.torch.calls import Call
from fewbit.frontends.torch.exporter import export
from fewbit.runtimes import runtime_named

HEADS = """(float[n, 6, 16] x, bool[n, 1, 1, 6] mask) => (float[n, 6, 16] y) {
    q0 = MatMul(x, "q.weight")  q1 = Reshape(q0, heads)  q = Transpose<perm=[0, 2, 1, 3]>(q1)
    k0 = MatMul(x, "k.weight")  k1 = Reshape(k0, heads)  k = Transpose<perm=[0, 2, 3, 1]>(k1)
    v0 = MatMul(x, "v.weight")  v1 = Reshape(v0, heads)  v = Transpose<perm=[0, 2, 1, 3]>(v1)
    s0 = MatMul(q, k)  s1 = Mul(s0, half)  s2 = Where(mask, s1, low)  p = Softmax<axis=-1>(s2)
    o0 = MatMul(p, v)  o1 = Transpose<perm=[0, 2, 1, 3]>(o0)  o2 = Reshape(o1, whole)  y = MatMul(o2, "o.weight")
}"""
CONSTANTS = {
    **{f"{name}.weight": (16, 16) for name in "qkvo"},
    "heads": np.asarray([0, 6, 4, 4]), "whole": np.asarray([0, 6, 16]),
    "half": np.asarray(0.5, np.float32), "low": np.asarray(-1e4, np.float32),
}  # fmt: skip
NAMES = ["MatMul:s0.query_key", "MatMul:o0.probabilities_value"]
STATIC, SYMMETRIC, DYNAMIC = "int8 tensor asym static", "int8 tensor sym static", "int8 tensor asym"


def batches(count=3):
    draws = [np.random.default_rng(n) for n in range(count)]
    return [{"x": d.normal(size=(4, 6, 16)).astype(np.float32), "mask": d.random((4, 1, 1, 6)) > 0.3} for d in draws]


def recipe(text, linear=None):
    layers = [fb.Rule(kind="linear", weight="int8", input=linear)] if linear else []
    return fb.Recipe([*layers, fb.Rule(kind="attention", input=text)])


def told(path):
    layers = json.loads(path.with_name(f"{path.stem}.report.json").read_text())["layers"]
    return {own["name"]: own["kernel"] for own in layers if own["kind"] == "attention"}


def apart(result, path, run, feeds):
    expected = result.run(feeds)["y"]
    return float(np.abs(run(path, feeds)["y"] - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("text", "linear", "kernels"),
    [
        (STATIC, None, ["MatMulIntegerToFloat", "MatMulIntegerToFloat"]),
        # What goes on to a layer that is rounded stays in integers; scores do not.
        (STATIC, STATIC, ["MatMulIntegerToFloat", "QLinearMatMul"]),
        (SYMMETRIC, STATIC, ["MatMulIntegerToFloat", "QLinearMatMul"]),
        (DYNAMIC, None, ["DynamicQuantizeMatMul", "DynamicQuantizeMatMul"]),
        (DYNAMIC, STATIC, ["DynamicQuantizeMatMul", "DynamicQuantizeMatMul"]),
    ],
)
def test_onnxruntime_multiplies_in_integers_what_was_simulated(onnx_model, tmp_path, run, text, linear, kernels):
    given = batches()
    result = fb.quantize(onnx_model(HEADS, CONSTANTS), recipe(text, linear), to="ort-cpu", calibration=given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = result.save(tmp_path / "m.onnx")
    onnx.checker.check_model(path, full_check=True)
    assert [kernel.split()[1].strip(",") for kernel in told(path).values()] == kernels
    # Values that lie amid two codes may fall to either: a step of 1/255 of a range in one number of a sum.
    assert apart(result, path, run, batches(5)[4]) < 0.01


def test_integers_flow_from_the_layers_through_heads_into_the_products(onnx_model):
    result = fb.quantize(onnx_model(HEADS, CONSTANTS), recipe(STATIC, STATIC), to="ort-cpu", calibration=batches())
    values, products = result.model.values, result.model.products
    assert {"q0", "q1", "q", "k0", "k1", "k", "v0", "v1", "v", "o0", "o1", "o2"} <= values.keys()
    assert not {"s0", "s1", "s2", "p"} & values.keys()
    assert values["k0"].scale == values["k"].scale == products[NAMES[0]]["key"].scale
    assert products[NAMES[1]]["probabilities"].scale != values["v"].scale


def test_a_range_method_of_a_product_is_that_of_what_it_shares_a_scale_with(onnx_model):
    made = recipe("int8 tensor asym static percentile", STATIC)
    result = fb.quantize(onnx_model(HEADS, CONSTANTS), made, to="ort-cpu", calibration=batches())
    assert result.model.values["k0"].scheme.ranging.name == "percentile"
    assert result.model.values["o2"].scheme.ranging.name == "minmax"


def test_a_scale_that_is_twice_as_large_is_noticed(onnx_model, tmp_path, run):
    result = fb.quantize(onnx_model(HEADS, CONSTANTS), recipe(STATIC), to="ort-cpu", calibration=batches())
    proto = onnx.load(result.save(tmp_path / "m.onnx"))
    scale = next(own for own in proto.graph.initializer if own.name == "k/scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.asarray(2 * onnx.numpy_helper.to_array(scale)), scale.name))
    onnx.save(proto, tmp_path / "damaged.onnx")
    assert apart(result, tmp_path / "damaged.onnx", run, batches(5)[4]) > 0.02


@pytest.mark.parametrize("runtime", ["tensorrt", "migraphx", "openvino"])
def test_other_runtimes_get_pairs_on_both_operands_by_their_rules(onnx_model, tmp_path, run, runtime, monkeypatch):
    monkeypatch.setattr("fewbit.checkpoints.onnx.format.processor_flags", frozenset)  # no weights of 7 bits
    result = fb.quantize(onnx_model(HEADS, CONSTANTS), recipe(SYMMETRIC, SYMMETRIC), to=runtime, calibration=batches())
    path = result.save(tmp_path / "m.onnx")
    model = ir.load(path)
    assert not violations(model, runtime_named(runtime))
    for node in model.graph:
        if node.op_type == "MatMul":
            assert [value.producer().op_type for value in node.inputs] == ["DequantizeLinear"] * 2
    assert told(path) == dict.fromkeys(NAMES, f"{runtime}, from QDQ")
    assert apart(result, path, run, batches(5)[4]) < 0.01


@pytest.mark.parametrize(
    ("runtime", "text", "message"),
    [
        (
            "ort-cpu",
            "int8 token",
            "ONNX has one dynamic rounding, 'int8 tensor asym', and the input is 'int8 token asym'",
        ),
        (
            "ort-cpu",
            "e4m3 static",
            "ort-cpu does not load products of two float8 activations, here 'e4m3 tensor static'",
        ),
        ("tensorrt", STATIC, "tensorrt takes no zero points, and here is 'int8 tensor asym static'"),
        ("openvino", DYNAMIC, "openvino takes no ranges of the moment"),
    ],
)
def test_what_a_runtime_has_no_form_for_is_a_problem_of_the_plan(onnx_model, runtime, text, message):
    with pytest.raises(PlanError, match=message):
        fb.quantize(onnx_model(HEADS, CONSTANTS), recipe(text), to=runtime, calibration=batches())


def test_products_of_16_bits_are_written_and_said_to_be_computed_in_float(onnx_model, tmp_path, run):
    result = fb.quantize(onnx_model(HEADS, CONSTANTS), recipe("int16 static"), to="ort-cpu", calibration=batches())
    path = result.save(tmp_path / "m.onnx")
    assert set(told(path).values()) == {"onnxruntime, in float: onnxruntime computes with int16 inputs in float"}
    assert apart(result, path, run, batches(5)[4]) < 1e-4  # a step is 1/65535 of a range


def test_the_dynamic_form_takes_float16(onnx_model, tmp_path, run):
    text = """(float16[n, 5, 8] x) => (float16[n, 5, 8] y) { xt = Transpose<perm=[0, 2, 1]>(x)
        s = MatMul(x, xt)  p = Softmax<axis=-1>(s)  y = MatMul(p, x) }"""
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float16)
    result = fb.quantize(onnx_model(text, {}), recipe(DYNAMIC), to="ort-cpu", calibration=[{"x": x}])
    path = result.save(tmp_path / "m.onnx")
    assert apart(result, path, run, {"x": x}) < 0.01


class Block(nn.Module):
    """An encoder block with torch's own attention, whose queries and keys its exporter scales before the product."""

    def __init__(self):
        super().__init__()
        self.attention, self.norm, self.out = (
            nn.MultiheadAttention(32, 4, batch_first=True),
            nn.LayerNorm(32),
            nn.Linear(32, 32),
        )

    def forward(self, x):
        return self.out(self.norm(x + self.attention(x, x, x, need_weights=False)[0]))


def test_an_encoder_that_torch_exported_runs_its_products_in_integers(tmp_path, run):
    torch.manual_seed(0)
    graph = export(nn.Sequential(Block(), Block()).eval(), Call((torch.randn(3, 7, 32),), {}))
    name = graph.graph.inputs[0].name
    given = [{name: np.random.default_rng(n).normal(size=(3, 7, 32)).astype(np.float32)} for n in range(4)]
    result = fb.quantize(graph, recipe(STATIC, STATIC), to="ort-cpu", calibration=given[:3], evaluation=given[:1])
    path = result.save(tmp_path / "m.onnx")
    names = [f"{n}.attention.{product}" for n in "01" for product in ("query_key", "probabilities_value")]
    assert {own: kernel.split()[1].strip(",") for own, kernel in told(path).items()} == {
        own: "QLinearMatMul" if "value" in own else "MatMulIntegerToFloat" for own in names
    }
    assert result.report.output_sqnr > 25
    (expected,), (found,) = result.run(given[3]).values(), run(path, given[3]).values()
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()  # some steps of 1/255 of a range
