"""Weights on a processor that saturates, chosen by measured error when a file is written; saturation is emulated."""

import json

import numpy as np
import onnx
from openvino_models import compiled

import fewbit as fb
from fewbit.checkpoints.onnx.saturation_choice import choose_weights
from fewbit.runtimes import runtime_named
from fewbit.runtimes.processor import processor_flags
from fewbit.runtimes.saturation import saturates

TEXT = """(float[n, 128] x, float[n, 128] r) => (float[n, 64] a, float[n, 64] b, float[n, 64] c) {
    a = MatMul(r, "plain.weight")  b = MatMul(x, "signs.weight")  c = MatMul(x, "flat.weight") }"""
RULES = fb.Recipe([fb.Rule(kind="linear", weight="int8", input="int8 static")])


def weights():
    draw = np.random.default_rng(0)
    return {
        # Behind a Relu hardly a product saturates, and 7 bits would cost more.
        "plain.weight": draw.normal(size=(128, 64)).astype(np.float32),
        # Of one magnitude: 7 bits hold it as well as 8, and pairs of it saturate.
        "signs.weight": np.sign(draw.normal(size=(128, 64))).astype(np.float32),
        # All magnitudes alike: 7 bits lose more than a decibel, and saturation far more.
        "flat.weight": draw.uniform(-1, 1, size=(128, 64)).astype(np.float32),
    }


def batches(count=3):
    draws = [np.random.default_rng(n) for n in range(count)]
    return [
        {
            "x": d.normal(size=(32, 128)).astype(np.float32),
            "r": np.maximum(d.normal(size=(32, 128)), 0).astype(np.float32),
        }
        for d in draws
    ]


def codes(path):
    tensors = {own.name: onnx.numpy_helper.to_array(own) for own in onnx.load(path).graph.initializer}
    return {name.removesuffix(".codes"): own for name, own in tensors.items() if name.endswith(".codes")}


def saved(proto, flags, path, monkeypatch, calibration, recipe=RULES, runtime="ort-cpu"):
    monkeypatch.setattr("fewbit.checkpoints.onnx.format.processor_flags", lambda: frozenset(flags))
    result = fb.quantize(proto, recipe, to=runtime, calibration=calibration)
    before = dict(result.model.layers)
    result.save(path)
    assert result.model.layers == before  # the model itself stays as it is
    return codes(path), json.loads(path.with_name(f"{path.stem}.report.json").read_text())["remarks"]


def test_each_layer_gets_the_weights_that_measure_best(onnx_model, tmp_path, monkeypatch):
    found, remarks = saved(onnx_model(TEXT, weights()), {"avx2"}, tmp_path / "m.onnx", monkeypatch, batches())
    assert {name: own.dtype.name for name, own in found.items()} == {"plain": "int8", "signs": "int8", "flat": "uint8"}
    assert np.abs(found["plain"].astype(int)).max() > 63
    assert np.abs(found["signs"].astype(int)).max() == 63
    told = {remark.partition(":")[0]: remark for remark in remarks}
    assert "could saturate on this processor and stay in 8 bits, which measured best" in told["plain"]
    assert "in 7 bits, since products of 8 bits saturate on this processor (SQNR in dB of signs: plain" in told["signs"]
    assert any("flat: as uint8, which is slower, since 7 bits lose too much" in remark for remark in remarks)


def test_openvino_which_multiplies_uint8_in_float_gets_7_bits_instead(onnx_model, tmp_path, monkeypatch):
    proto, path = onnx_model(TEXT, weights()), tmp_path / "m.onnx"
    found, remarks = saved(proto, {"avx2"}, path, monkeypatch, batches(), runtime="openvino")
    assert {name: np.abs(own.astype(int)).max() > 63 for name, own in found.items()} == {
        "plain": True, "signs": False, "flat": False,
    }  # fmt: skip
    assert {own.dtype.name for own in found.values()} == {"int8"}
    assert any(
        remark.startswith("signs and 1 more: in 7 bits, since products of 8 bits saturate") for remark in remarks
    )


def test_what_openvino_makes_of_it_is_nearer_to_the_float_model_on_the_processor_at_hand(
    onnx_model, tmp_path, monkeypatch, error
):
    """On one that does not saturate 8 bits are the nearer ones: the choice follows the processor."""
    proto, given = onnx_model(TEXT, weights()), batches(4)[3]
    far = {}
    for flags in ({"avx2"}, {"avx2", "avx512_vnni"}):
        path = tmp_path / f"{len(flags)}.onnx"
        saved(proto, flags, path, monkeypatch, batches(), runtime="openvino")
        model = compiled(path, {"INFERENCE_PRECISION_HINT": "f32"})
        far[saturates(frozenset(flags))] = error(model(given)["c"], given["x"] @ weights()["flat.weight"])
    old = saturates(processor_flags())
    assert far[old] < far[not old]
    assert not old or far[True] < 0.5 * far[False]


def test_a_processor_that_does_not_saturate_gets_plain_weights(onnx_model, tmp_path, monkeypatch):
    found, remarks = saved(
        onnx_model(TEXT, weights()), {"avx2", "avx512_vnni"}, tmp_path / "m.onnx", monkeypatch, batches()
    )
    assert {own.dtype.name for own in found.values()} == {"int8"}
    assert not any("saturate" in remark for remark in remarks)


def test_other_inputs_make_another_choice(onnx_model, tmp_path, monkeypatch):
    """The control: where one outlier makes the range, the other inputs have small codes and nothing saturates."""
    calm = [{**own, "x": np.abs(own["x"]) / 20} for own in batches()]
    for own in calm:
        own["x"][0, 0] = 1.0
    found, _ = saved(onnx_model(TEXT, weights()), {"avx2"}, tmp_path / "m.onnx", monkeypatch, calm)
    assert found["flat"].dtype == np.int8
    assert np.abs(found["flat"].astype(int)).max() > 63


def test_convolutions_are_measured_on_their_patches_those_in_groups_on_the_first_one(onnx_model, tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    text = """(float[n, 4, 6, 6] x) => (float[n, 8, 6, 6] a, float[n, 8, 6, 6] b) {
        a = Conv<pads=[1, 1, 1, 1]>(x, "whole.weight")  b = Conv<pads=[1, 1, 1, 1], group=2>(x, "halves.weight") }"""
    own = {"whole.weight": np.sign(draw.normal(size=(8, 4, 3, 3))), "halves.weight": np.ones((8, 2, 3, 3))}
    proto = onnx_model(text, {name: array.astype(np.float32) for name, array in own.items()})
    given = [np.random.default_rng(n).uniform(0, 1, size=(2, 4, 6, 6)).astype(np.float32) for n in range(2)]
    recipe = fb.Recipe([fb.Rule(kind="conv", weight="int8", input="int8 static")])
    found, remarks = saved(proto, {"avx2"}, tmp_path / "m.onnx", monkeypatch, given, recipe)
    assert {name: (own.dtype.name, np.abs(own.astype(int)).max()) for name, own in found.items()} == {
        "whole": ("int8", 63), "halves": ("int8", 63),
    }  # fmt: skip
    assert any("in 7 bits, since products of 8 bits saturate" in remark for remark in remarks)


def test_what_cannot_be_measured_is_stored_as_uint8_and_said(onnx_model):
    text = """(float[n, 8] x, bool b) => (float[n, 4] y) {
        y = If(b) <then_branch = one () => (float[n, 4] t) { t = MatMul(x, "in.weight") },
                   else_branch = two () => (float[n, 4] e) { e = MatMul(x, "out.weight") }> }"""
    proto = onnx_model(text, dict.fromkeys(("in.weight", "out.weight"), np.ones((8, 4), np.float32)))
    given = [{"x": np.ones((2, 8), np.float32), "b": np.asarray(True)}]
    result = fb.quantize(proto, fb.Recipe([fb.Rule(kind="linear", weight="int8", input="int8 tensor asym")]))
    chosen = choose_weights(result.model, given, runtime_named("ort-cpu").on_processor(frozenset({"avx2"})))
    assert (chosen.unsigned, chosen.narrow) == (("in", "out"), {})
    assert chosen.notes == (
        "in and 1 more: as uint8, which is slower: its inputs cannot be shown, so nothing was measured",
    )
    chosen = choose_weights(result.model, given, runtime_named("openvino").on_processor(frozenset({"avx2"})))
    assert (chosen.unsigned, list(chosen.narrow)) == ((), ["in", "out"])
    assert chosen.notes[0].startswith("in and 1 more: in 7 bits, since products of 8 bits could saturate: its inputs")
    assert not choose_weights(result.model, given, runtime_named("ort-cpu")).unsigned
