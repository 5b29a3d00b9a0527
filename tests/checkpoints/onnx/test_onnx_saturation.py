"""Products that saturate at 16 bits: emulated, since the processor at hand need not be one of those."""

import numpy as np
import onnx
import pytest

from fewbit.checkpoints.onnx.saturation import choose, exact_product, packed_order, saturated_product, saturating_pairs
from fewbit.runtimes import runtime_named
from fewbit.runtimes.ort_cpu import on_processor

ORT = runtime_named("ort-cpu")
OLD = on_processor(frozenset({"avx2", "fma"}))
NEW = on_processor(frozenset({"avx2", "avx512_vnni"}))


def product(case, width, weight, inputs=None, scheme="int8", rounding="int8 static"):
    text = f'<ir_version: 8, opset_import: ["" : 13]> g (float[64,{width}] x) => (float[64,N] y) {{ y = MatMul(x,w) }}'
    own = case(text, w=weight.astype(np.float32))
    if inputs is not None:
        own.feeds["x"] = inputs.astype(np.float32)
    return own.quantize(ORT, weight=scheme, given=rounding)


def only(own):
    name = next(iter(own.model.layers))
    return own.model.found[name], own.model.layers[name]


def test_one_pair_is_cut_off_as_the_instruction_cuts_it_off():
    codes, units = np.asarray([[255, 255, 255]]), np.asarray([[127, 127, 1], [-128, -128, 1], [100, 28, 1]])
    assert exact_product(codes, units).tolist() == [[64770 + 255, -65280 + 255, 32640 + 255]]
    assert saturated_product(codes, units).tolist() == [[32767 + 255, -32768 + 255, 32640 + 255]]


@pytest.mark.parametrize("odd", [0, 1])
def test_pairs_that_cannot_be_cut_off_are_not_and_others_are_by_some_input(case, odd):
    draw = np.random.default_rng(0)
    own, rounded = only(product(case, 32 + odd, draw.normal(size=(32 + odd, 300))))
    codes = np.asarray(rounded.qtensor.codes, np.int32)
    # The worst inputs of a pair: 255 where the weight has one sign, 0 elsewhere.
    worst = [np.where(codes * sign > 0, 255, 0) for sign in (1, -1)]
    pairs = [(inputs * codes)[:, :32].reshape(300, 16, 2).sum(axis=2) for inputs in worst]
    cut = sum(int(np.count_nonzero((own < -(1 << 15)) | (own >= 1 << 15))) for own in pairs)
    assert saturating_pairs(own, rounded.qtensor) == cut > 0


def test_seven_bits_never_saturate(case):
    own, rounded = only(product(case, 64, np.ones((64, 5)), scheme="int7 narrow"))
    assert np.abs(rounded.qtensor.codes).max() == 63
    assert saturating_pairs(own, rounded.qtensor) == 0
    assert choose(own, rounded, np.ones((2, 64), np.float32)).weights == "plain"


def test_flat_weights_under_normal_inputs_lose_most_and_are_stored_as_uint8(case):
    draw = np.random.default_rng(0)
    own = product(case, 768, draw.uniform(-1, 1, size=(768, 128)), draw.normal(size=(64, 768)))
    found = choose(*only(own), own.feeds["x"])
    # As onnxruntime was seen to do on a processor without VNNI: it loses half of its decibels.
    assert found.sqnr["plain"] < 25
    assert found.sqnr["uint8"] > found.sqnr["7 bits"] > 34
    assert found.weights == "uint8"


def test_normal_weights_behind_a_relu_stay_as_they_are(case):
    draw = np.random.default_rng(0)
    inputs = np.maximum(draw.normal(size=(64, 256)), 0)
    own = product(case, 256, draw.normal(size=(256, 128)), inputs)
    found = choose(*only(own), own.feeds["x"])
    assert found.pairs > 0
    assert found.sqnr["uint8"] - 1 < found.sqnr["plain"]
    assert found.sqnr["plain"] > found.sqnr["7 bits"]
    assert found.weights == "plain"


@pytest.mark.parametrize("given", ["int8 static", "int8 tensor"])
def test_the_error_of_exact_products_is_the_one_that_onnxruntime_makes(case, run, error, tmp_path, given):
    draw = np.random.default_rng(0)
    own = product(case, 64, draw.uniform(-1, 1, size=(64, 16)), draw.normal(size=(64, 64)), rounding=given)
    own.write(ORT, tmp_path / "m.onnx", unsigned=list(own.model.layers))
    made = next(iter(run(tmp_path / "m.onnx", own.feeds).values()))
    measured = -20 * np.log10(error(made, own.float()))
    # In decibels; the one adds in float32, the other in float64.
    assert choose(*only(own), own.feeds["x"]).sqnr["uint8"] == pytest.approx(measured, abs=0.01)


def test_a_convolution_pairs_channels_at_one_position_and_a_depthwise_one_nothing(case):
    text = '<ir_version: 8, opset_import: ["" : 13]> g (float[1,4,5,5] x) => (float[1,A,B,C] y) { y = Conv%s(x,w) }'
    own = next(iter(case(text % "", w=(6, 4, 2, 3)).model.found.values()))
    weight = np.arange(6 * 4 * 2 * 3).reshape(6, 4, 2, 3)
    last = weight.transpose(0, 2, 3, 1).reshape(6, -1)
    np.testing.assert_array_equal(own.arrangement.matrix(weight)[:, packed_order(own)], last)
    depthwise = case(text % "<group=4>", w=(4, 1, 2, 3)).quantize(ORT)
    assert packed_order(only(depthwise)[0]).size == 0
    assert saturating_pairs(only(depthwise)[0], only(depthwise)[1].qtensor) == 0


@pytest.mark.parametrize(("runtime", "kind"), [(OLD, np.uint8), (NEW, np.int8), (ORT, np.int8)])
def test_what_can_saturate_is_stored_as_uint8_on_a_processor_that_saturates_only(case, tmp_path, runtime, kind):
    own = product(case, 64, np.ones((64, 5)))
    written = own.write(runtime, tmp_path / "m.onnx")
    codes = next(t for t in onnx.load(tmp_path / "m.onnx").graph.initializer if t.name.endswith(".codes"))
    assert onnx.numpy_helper.to_array(codes).dtype == kind
    assert bool(written.notes) == (runtime is OLD)


def test_a_choice_made_by_measuring_overrules(case, tmp_path):
    own = product(case, 64, np.ones((64, 5)))
    assert not own.write(OLD, tmp_path / "m.onnx", unsigned=()).notes
