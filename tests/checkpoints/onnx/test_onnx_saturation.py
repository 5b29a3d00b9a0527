"""Products that saturate at 16 bits: emulated, and held against runtimes on a processor that does so."""

import numpy as np
import pytest
from openvino_models import compiled

from fewbit.checkpoints.onnx.saturation import (
    can_saturate,
    choose,
    exact_product,
    packed,
    packed_order,
    saturated_product,
    saturating_pairs,
)
from fewbit.checkpoints.onnx.saturation_choice import choose_weights
from fewbit.runtimes import runtime_named
from fewbit.runtimes.processor import processor_flags
from fewbit.runtimes.saturation import saturates

ORT = runtime_named("ort-cpu")
OPENVINO = runtime_named("openvino")
SATURATION = ORT.without_vnni
OLD = ORT.on_processor(frozenset({"avx2", "fma"}))
NEW = ORT.on_processor(frozenset({"avx2", "avx512_vnni"}))


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
    codes, units = np.asarray([[255] * 4]), np.asarray([[127, 127, 1, 0], [-128, -128, 1, 0], [100, 28, 1, 0]])
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
    assert saturating_pairs(own, rounded.qtensor, SATURATION) == cut > 0


def test_seven_bits_never_saturate(case):
    own, rounded = only(product(case, 64, np.ones((64, 5)), scheme="int7 narrow"))
    assert np.abs(rounded.qtensor.codes).max() == 63
    assert saturating_pairs(own, rounded.qtensor, SATURATION) == 0
    assert choose(own, rounded, np.ones((2, 64), np.float32), SATURATION).weights == "plain"


def test_flat_weights_under_normal_inputs_lose_most_and_are_stored_as_uint8(case):
    draw = np.random.default_rng(0)
    own = product(case, 768, draw.uniform(-1, 1, size=(768, 128)), draw.normal(size=(64, 768)))
    found = choose(*only(own), own.feeds["x"], SATURATION)
    # As onnxruntime was seen to do on a processor without VNNI: it loses half of its decibels.
    assert found.sqnr["plain"] < 25
    assert found.sqnr["uint8"] > found.sqnr["7 bits"] > 34
    assert found.weights == "uint8"


def test_normal_weights_behind_a_relu_stay_as_they_are(case):
    draw = np.random.default_rng(0)
    inputs = np.maximum(draw.normal(size=(64, 256)), 0)
    own = product(case, 256, draw.normal(size=(256, 128)), inputs)
    found = choose(*only(own), own.feeds["x"], SATURATION)
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
    assert choose(*only(own), own.feeds["x"], SATURATION).sqnr["uint8"] == pytest.approx(measured, abs=0.01)


def test_a_convolution_pairs_channels_at_one_position_and_a_depthwise_one_nothing(case):
    text = '<ir_version: 8, opset_import: ["" : 13]> g (float[1,4,5,5] x) => (float[1,A,B,C] y) { y = Conv%s(x,w) }'
    own = next(iter(case(text % "", w=(6, 4, 2, 3)).model.found.values()))
    weight = np.arange(6 * 4 * 2 * 3).reshape(6, 4, 2, 3)
    last = weight.transpose(0, 2, 3, 1).reshape(6, -1)
    np.testing.assert_array_equal(own.arrangement.matrix(weight)[:, packed_order(own, SATURATION)], last)
    depthwise = case(text % "<group=4>", w=(4, 1, 2, 3)).quantize(ORT)
    assert packed_order(only(depthwise)[0], SATURATION).size == 0
    own, rounded = only(depthwise)
    assert saturating_pairs(own, rounded.qtensor, SATURATION) == 0


def test_of_an_odd_number_of_channels_the_last_goes_with_the_next_position_or_with_nothing(case):
    text = '<ir_version: 8, opset_import: ["" : 13]> g (float[1,3,5,5] x) => (float[1,A,B,C] y) { y = Conv(x,w) }'
    own = next(iter(case(text, w=(6, 3, 1, 2)).model.found.values()))  # columns 0 and 1 are channel 0
    assert packed_order(own, SATURATION).tolist() == [0, 2, 4, 1, 3, 5]
    order = packed_order(own, OPENVINO.without_vnni)
    assert order.tolist() == [0, 2, 4, -1, 1, 3, 5, -1]
    assert packed(np.arange(1, 7).reshape(1, 6), order).tolist() == [[1, 3, 5, 0, 2, 4, 6, 0]]


IMAGES = '<ir_version: 8, opset_import: ["" : 13]> g (float[2,C,7,7] x) => (float[2,N,H,W] y) { y = Conv%s(x,w) }'
VECTORS = '<ir_version: 8, opset_import: ["" : 13]> g (float[%s] x) => (float[A,N] y) { y = MatMul(x,w) }'
PACKED = {
    "rows": (VECTORS % "5, 64", (64, 7)),
    "one row": (VECTORS % "1, 64", (64, 7)),
    "odd": (VECTORS % "5, 33", (33, 130)),
    "deep": (VECTORS % "64, 768", (768, 16)),
    "conv": (IMAGES.replace("C", "16", 1) % "", (8, 16, 3, 3)),
    "conv of odd channels": (IMAGES.replace("C", "3", 1) % "", (6, 3, 2, 3)),
    "points": (IMAGES.replace("C", "5", 1) % "", (33, 5, 1, 1)),
    "groups": (IMAGES.replace("C", "16", 1) % "<group=4>", (16, 4, 3, 3)),
    "odd groups": (IMAGES.replace("C", "6", 1) % "<group=2>", (16, 3, 3, 3)),
    "twice a channel": (IMAGES.replace("C", "16", 1) % "<group=16>", (32, 1, 3, 3)),
    "depthwise": (IMAGES.replace("C", "16", 1) % "<group=16>", (16, 1, 3, 3)),
}


def emulated(own, saturation, *, exact=False):
    """Return the outputs of the one layer, its products cut off as those of `saturation`, and rounded if they are."""
    found, rounded = only(own)
    given, order = rounded.activations.input, packed_order(found, saturation)
    shift = 128 if given.scheme.format.signed else 0
    codes = np.asarray(given.scheme.grid.codes(own.feeds["x"], given.scale, given.zero_point), np.int32)
    zero = 0 if given.zero_point is None else int(given.zero_point)
    cut = saturated_product if order.size and not exact else exact_product
    order = order if order.size else np.arange(found.layer.shape[1])
    units, scale = np.asarray(rounded.qtensor.codes, np.int32), np.asarray(rounded.qtensor.scale).reshape(-1)
    groups = getattr(found.arrangement, "groups", 1)
    sums = []
    for rows, weights in zip(windows(codes, found, groups), np.split(units, groups), strict=True):
        made = cut(packed(rows.reshape(-1, rows.shape[-1]) + shift, order), packed(weights, order))
        sums.append((made - (zero + shift) * weights.sum(axis=1)).reshape(*rows.shape[:-1], -1))
    result = np.concatenate(sums, axis=-1) * (scale * float(given.scale))
    result = np.moveaxis(result, -1, 1).astype(np.float32)
    after = own.model.values.get("y")
    return result if after is None else np.asarray(after.rounded(result))


def windows(codes, found, groups):
    """Return what each group multiplies: (samples, ..., in)."""
    if codes.ndim == 2:
        return [codes]
    kernel = found.weight.const_value.shape[2:]
    seen = np.lib.stride_tricks.sliding_window_view(codes, tuple(kernel), axis=(2, 3))
    parts = np.split(np.moveaxis(seen, 1, 3), groups, axis=3)  # (samples, height, width, channels, *kernel)
    return [part.reshape(*part.shape[:3], -1) for part in parts]


def computed(path, runtime, feeds, run):
    if runtime == "ort-cpu":
        return next(iter(run(path, feeds, session__x64quantprecision="0").values()))
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    return compiled(path, options)(feeds)[0]


@pytest.mark.parametrize("given", ["int8 static", "int8 static sym"])
@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("runtime", ["ort-cpu", "openvino"])
def test_the_processor_at_hand_cuts_off_what_is_emulated(case, run, error, tmp_path, runtime, name, given):
    text, shape = PACKED[name]
    own = case(text, w=shape).quantize(runtime_named(runtime), given=given)
    own.write(runtime_named(runtime), tmp_path / "m.onnx")
    found = computed(tmp_path / "m.onnx", runtime, own.feeds, run)
    old, saturation = saturates(processor_flags()), runtime_named(runtime).without_vnni
    exact = emulated(own, saturation, exact=True)
    # A code of an output or, of 49,152 inputs, of one that lies amid two may fall to either side.
    bound = 2e-3 if own.model.values or name == "deep" else 1e-6
    assert error(found, emulated(own, saturation) if old else exact) < bound
    # The control: what is not cut off is another result, but where there are no pairs or inputs are too small.
    if given == "int8 static" and name not in ("depthwise", "conv of odd channels"):
        assert error(emulated(own, saturation), exact) > 2 * bound


@pytest.mark.skipif(not saturates(processor_flags()), reason="the processor at hand adds integers in 32 bits")
@pytest.mark.parametrize("runtime", ["ort-cpu", "openvino"])
def test_on_a_processor_that_saturates_7_bits_and_what_is_stored_as_uint8_are_exact(
    case, run, error, tmp_path, runtime
):
    text, shape = PACKED["rows"]
    for weight, unsigned in (("int8", False), ("int7 narrow", False), ("int8", True)):
        own = case(text, w=shape).quantize(runtime_named(runtime), weight=weight)
        own.write(runtime_named(runtime), tmp_path / "m.onnx", overwrite=True, unsigned=["MatMul:y"] * unsigned)
        far = error(computed(tmp_path / "m.onnx", runtime, own.feeds, run), own.simulated())
        assert (far < 1e-6) == (weight == "int7 narrow" or unsigned)
        assert far < 0.1


@pytest.mark.parametrize(("runtime", "unsigned"), [(OLD, ("MatMul:y",)), (NEW, ()), (ORT, ())])
def test_what_can_saturate_is_to_be_uint8_without_data_on_a_processor_that_saturates_only(case, runtime, unsigned):
    chosen = choose_weights(product(case, 64, np.ones((64, 5))).model, [], runtime)
    assert (chosen.unsigned, chosen.narrow, bool(chosen.notes)) == (unsigned, {}, bool(unsigned))


def test_a_transposed_convolution_which_stays_float_cannot_saturate(case):
    text = '<ir_version: 8, opset_import: ["" : 13]> g (float[1,4,5,5] x) => (float[1,A,B,C] y) { y = %s(x,w) }'
    for operator, expected in (("ConvTranspose", False), ("Conv", True)):
        own = case(text % operator, w=np.ones((4, 4, 3, 3), np.float32)).quantize(ORT)
        assert can_saturate(*only(own), OLD) == expected
