"""Rounding of inputs: dynamic as `quantize` does it, static by ranges that calibration has fixed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fewbit.activation import Activation
from fewbit.catalogue import lookup
from fewbit.errors import CalibrationError, SchemeError
from fewbit.qtensor import quantize
from fewbit.ranges.squared_error import SquaredError
from fewbit.schemes.granularity import PerToken
from fewbit.schemes.notation import input_scheme_to_text, parse_input_scheme
from fewbit.statistics import STATISTICS

METHODS = [
    "absmax sym",
    "minmax",
    "percentile",
    "percentile sym",
    "mse",
    "mse sym",
    "lsq",
    "entropy",
    "entropy sym",
    "average",
]


def values(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_t(4, (400, 16)).astype(np.float32))


def calibrated(text, *batches):
    scheme = parse_input_scheme(text)
    seen = None
    if scheme.ranging.statistic:
        seen = lookup(STATISTICS, scheme.ranging.statistic, what="statistic").init(batches[0].shape[-1], batches[0])
        for batch in batches:
            seen.update(batch)
    return Activation.calibrated(scheme, seen).like(batches[0])


def sqnr(x, rounded):
    return float(10 * torch.log10(x.square().sum() / (x - rounded).square().sum()))


@pytest.mark.parametrize("text", ["int8", "int8 sym", "int8 tensor", "int4 g8", "e4m3", "e4m3 tensor", "mxfp8"])
def test_a_dynamic_rounding_is_that_of_quantize(text):
    scheme, x = parse_input_scheme(text), values()
    assert torch.equal(Activation(scheme=scheme).rounded(x), quantize(x, scheme).dequantize())


@pytest.mark.parametrize("text", ["int8 static", "int8 static sym absmax", "e4m3 static"])
def test_on_the_data_that_it_has_seen_a_static_rounding_is_the_dynamic_one(text):
    x = values()
    dynamic = parse_input_scheme(text.replace("static", "tensor").replace(" absmax", ""))
    assert torch.equal(calibrated(text, x[:150], x[150:]).rounded(x), quantize(x, dynamic).dequantize())


def test_under_a_fixed_unit_what_calibration_has_seen_is_rounded_as_the_dynamic_scheme_does(xp):
    x = values()
    expected = quantize(x.numpy(), parse_input_scheme("nvfp4")).dequantize()
    found = calibrated("nvfp4 static", x[:150], x[150:])
    assert float(found.scale) == 2.0 ** np.ceil(np.log2(float(x.abs().max()) / 6.0 / 448.0))
    given = xp.from_numpy(x.numpy())
    np.testing.assert_array_equal(xp.to_numpy(found.like(given).rounded(given)), expected)


def test_under_a_fixed_unit_a_row_is_rounded_alike_alone_and_beside_others_but_not_by_the_dynamic_scheme():
    x = values() * torch.logspace(-3, 3, 400)[:, None]
    for text, alike in {"nvfp4 static": True, "nvfp4": False}.items():
        found = calibrated(text, x) if alike else Activation(scheme=parse_input_scheme(text))
        alone = torch.cat([found.rounded(row[None]) for row in x])
        assert torch.equal(alone, found.rounded(x)) is alike


def test_beyond_what_calibration_has_seen_scales_of_a_fixed_unit_saturate():
    found = calibrated("nvfp4 static", torch.full((4, 16), 2688.0))
    assert float(found.scale) == 1.0
    assert found.rounded(torch.full((1, 16), 2688.0)).tolist() == [[2688.0] * 16]
    assert found.rounded(torch.full((1, 16), 1e6)).tolist() == [[2688.0] * 16]  # 6 x 448


def test_gradients_pass_straight_through_the_rounding_under_a_fixed_unit():
    x = values().requires_grad_()
    calibrated("nvfp4 static", x.detach()).rounded(x).sum().backward()
    # A scale that e4m3 rounds down clips the largest number of its group by more than half a step now and then.
    assert (x.grad == 1.0).double().mean() > 0.95
    assert set(x.grad.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("text", ["int8 static", "nvfp4 static"])
def test_an_input_without_rows_stays_one(text):
    assert calibrated(text, values()).rounded(torch.zeros(0, 16)).shape == (0, 16)


def test_a_static_range_per_channel_is_that_of_each_channel():
    x = values() * torch.logspace(-3, 3, 16)
    found = calibrated("int8 static channel", x[:150], x[150:])
    columns = [quantize(x[:, [c]], parse_input_scheme("int8 tensor")).dequantize() for c in range(16)]
    assert found.scale.shape == (16,)
    assert torch.equal(found.rounded(x), torch.cat(columns, 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", ["int8", "int4"])
def test_every_method_gives_a_range_that_serves_other_data(method, number):
    words = method.split()
    found = calibrated(" ".join([number, "static", *words]), *values().split(100))
    # A step of 4 bits over the whole range of a heavy tail loses half of the bell: 5 dB are what minmax leaves.
    assert sqnr(values(1), found.rounded(values(1))) > {"int8": 12.0, "int4": 3.0}[number]
    assert np.isfinite(float(found.scale))


def test_searched_ranges_beat_the_extremes_at_four_bits():
    x = values()
    extremes = sqnr(x, calibrated("int4 static", x).rounded(x))
    assert sqnr(x, calibrated("int4 static mse", x).rounded(x)) > extremes + 2.0
    assert sqnr(x, calibrated("int4 static lsq", x).rounded(x)) > extremes + 2.0


def test_mse_on_the_histogram_is_as_good_as_on_the_numbers():
    x = values()
    numbers = quantize(x, parse_input_scheme("int4 tensor mse")).dequantize()
    assert sqnr(x, calibrated("int4 static mse", x).rounded(x)) == pytest.approx(sqnr(x, numbers), abs=0.1)


def test_one_outlier_does_not_decide_a_percentile_or_an_entropy():
    x = values().clone()
    x[7, 3] = 1e4
    for method in ("percentile", "entropy", "percentile sym", "entropy sym"):
        low, high = (float(calibrated(f"int8 static {m}", x).scale) for m in (method, "minmax"))
        assert low < 0.02 * high, method


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "lsq", "entropy", "average"])
def test_behind_a_relu_an_asymmetric_range_begins_at_zero(method):
    found = calibrated(f"int8 static {method}", values().relu())
    assert float(found.zero_point) == -128.0


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_are_all_zero_stay_zero(method):
    x = torch.zeros(10, 4)
    assert torch.equal(calibrated(f"int8 static {method}", x).rounded(x), x)


def test_what_nothing_reached_has_no_range():
    seen = lookup(STATISTICS, "histogram", what="statistic").init(4, torch.zeros(1))
    with pytest.raises(CalibrationError, match="no calibration input reached it, so it has no range"):
        Activation.calibrated(parse_input_scheme("int8 static mse"), seen)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("int8", "int8 token asym"), ("int8 sym", "int8 token sym"), ("int8 static", "int8 tensor asym static"),
        ("e4m3", "e4m3 token"), ("e4m3 static", "e4m3 tensor static"), ("int8 g64", "int8 g64 asym"),
        ("int8 static channel sym", "int8 channel sym static"), ("mxfp8", "mxfp8"),
        ("nvfp4 static", "nvfp4 static"),
        ("int8 static entropy", "int8 tensor asym static entropy"), ("uint8 static", "uint8 tensor asym static"),
    ],
)  # fmt: skip
def test_the_notation_of_inputs_has_their_own_usual_choices_and_reads_back(text, spelled):
    scheme = parse_input_scheme(text)
    assert input_scheme_to_text(scheme) == spelled
    assert parse_input_scheme(spelled) == scheme


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int8 static token", "static ranges are per tensor or channel, not 'token'; drop static"),
        ("int8 static g64", "static ranges are per tensor or channel, not 'g64'"),
        ("int8 static channel mse", "a static range per channel comes from extremes: absmax or minmax, not mse"),
        ("mxfp8 static", "mxfp8 is a whole scheme and takes one further word, mse or lsq; drop 'static'"),
        ("nvfp4 static mse", "takes one further word, mse, lsq or static; drop 'static mse'"),
        ("int8 static static", "names two times static"),
    ],
)
def test_a_static_scheme_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(SchemeError, match=message):
        parse_input_scheme(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_scheme": parse_input_scheme("mxfp8").scale_scheme}, "static fixes one float above all scales"),
        ({"range_method": SquaredError()}, "under a fixed scale of scales these are of groups, symmetric and absmax"),
        ({"granularity": PerToken()}, "under a fixed scale of scales these are of groups, symmetric and absmax"),
    ],
)
def test_a_fixed_unit_needs_one_float_above_the_scales_of_groups(change, message):
    with pytest.raises(SchemeError, match=message):
        replace(parse_input_scheme("nvfp4 static"), **change)
