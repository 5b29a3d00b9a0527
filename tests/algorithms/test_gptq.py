"""GPTQ against a slow float64 oracle of the paper's loop, and what each of its options is there for."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from fewbit.algorithms.gptq import Gptq
from fewbit.errors import NonFiniteError, RecipeError
from fewbit.qtensor import QTensor, quantize, scale_shape
from fewbit.schemes.notation import parse_scheme
from fewbit.statistics.second_moment import RelativeSecondMoment, SecondMoment


def gptq(**options):
    """GPTQ as in the paper but for `options`: plain second moment, the usual damping."""
    return Gptq(**{"relative": False, "damping": 0.01, **options})


#: GPTQ as in the paper: given columns in their order, usual scales, nothing after the loop.
PLAIN = gptq(order="none", search=False, sweeps=0, fit=False)
#: Float32 products against float64 ones, as a share of the result.
SUMS = 1e-4


pytestmark = pytest.mark.usefixtures("one_thread")


def correlated(width, rows=400, seed=0):
    """Return inputs whose features go together and differ in power, float32 (rows, width)."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, width)) * np.arange(1, width + 1) ** -0.7
    return (hidden @ rng.normal(size=(width, width)) * np.exp(rng.normal(size=width) * 0.7)).astype(np.float32)


def weights(out, width, seed=0):
    return np.random.default_rng(seed + 1000).normal(size=(out, width)).astype(np.float32)


def statistics(inputs):
    statistic = SecondMoment.init(inputs.shape[-1], inputs)
    statistic.update(inputs)
    return {"second_moment": statistic}


def damped(moment, damping=0.01):
    moment = np.asarray(moment, np.float64)
    return moment + damping * moment.diagonal().mean() * np.eye(len(moment))


def output_error(weight, qtensor, moment):
    """Return tr(D H D^T) in float64."""
    difference = np.asarray(qtensor.dequantize(), np.float64) - np.asarray(weight, np.float64)
    return float(((difference @ np.asarray(moment, np.float64)) * difference).sum())


def solved(text, weight, inputs, algorithm=PLAIN):
    return algorithm(weight, statistics(inputs), parse_scheme(text)).qtensor


def by_the_paper(weight, inputs, size, *, damping=0.01):
    """Return int4 symmetric codes, scales and what was rounded to codes, float64.

    One column at a time, scales from the updated weights.
    """
    w = weight.astype(np.float64)
    inputs = inputs.astype(np.float64)
    hessian = damped(inputs.T @ inputs / len(inputs), damping)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    codes, scales, values = np.zeros(w.shape), [], np.zeros(w.shape)
    for j in range(w.shape[1]):
        if j % size == 0:
            scales.append(np.abs(w[:, j : j + size]).max(axis=1) / 7.5)
        values[:, j] = w[:, j] / scales[-1]
        codes[:, j] = np.clip(np.rint(values[:, j]), -8, 7)
        error = (w[:, j] - codes[:, j] * scales[-1]) / upper[j, j]
        w[:, j:] -= error[:, None] * upper[j, j:]
    return codes, np.stack(scales, axis=1), values


# What it computes.


@pytest.mark.parametrize(("text", "size"), [("int4 channel", 200), ("int4 g16", 16), ("int4 g128", 128)])
def test_the_plain_loop_is_that_of_the_paper(text, size):
    # 200 columns: more than a panel, also where one group is all of them.
    weight, inputs = weights(64, 200), correlated(200, rows=600)
    found = solved(text, weight, inputs)
    codes, scales, values = by_the_paper(weight, inputs, size)
    same = found.codes == codes
    for row in np.flatnonzero(~same.all(axis=1)):
        # Float32 may take a value next to a tie the other way, which then takes the rest of its row along.
        first = int(np.argmin(same[row]))
        assert abs(abs(values[row, first] - np.rint(values[row, first])) - 0.5) < 1e-3
    rows = same.all(axis=1)
    # The largest magnitude of a symmetric group is a tie by itself, at -7.5: rows flip, but most do not.
    assert rows.mean() >= 0.5
    np.testing.assert_allclose(found.scale[:, 0], scales[:, 0], rtol=1e-6)  # of weights that nothing has changed yet
    np.testing.assert_allclose(found.scale[rows], scales[rows], rtol=1e-3)


@pytest.mark.parametrize(
    ("text", "size", "order"), [("int4 channel", 96, "activation"), ("int4 g16", 16, "group-aware")]
)
def test_an_order_is_the_loop_of_the_paper_on_columns_put_into_it(text, size, order):
    weight, inputs = weights(64, 96), correlated(96)
    power = np.square(inputs, dtype=np.float64).mean(axis=0)
    by_power = np.argsort(-power, kind="stable")
    if order == "group-aware":
        largest = power.reshape(-1, size).max(axis=1)
        by_power = np.array(sorted(by_power, key=lambda column: -largest[column // size]))
    assert (by_power != np.arange(96)).mean() > 0.9
    codes, _, _ = by_the_paper(weight[:, by_power], inputs[:, by_power], size)
    rows = (solved(text, weight, inputs, replace(PLAIN, order=order)).codes[:, by_power] == codes).all(axis=1)
    assert rows.mean() >= 0.5  # as above: the largest magnitude of a group is a tie by itself
    assert not (solved(text, weight, inputs).codes[:, by_power] == codes).all(axis=1).any()


@pytest.mark.parametrize("text", ["int4 channel", "int4 g16", "int4 asym g16", "int3 float-zero g16", "int8 tensor",
                                  "e4m3 channel", "nf4 g16", "ternary g16", "mxfp4", "nvfp4",
                                  "int2 narrow channel:1"])  # fmt: skip
def test_independent_inputs_of_equal_power_round_to_nearest(text):
    weight = weights(24, 64)
    inputs = np.concatenate([np.eye(64, dtype=np.float32)] * 4) * 8.0  # H is the identity, exactly
    found, expected = solved(text, weight, inputs), quantize(weight, parse_scheme(text))
    np.testing.assert_array_equal(found.scale_values(), expected.scale_values(), strict=True)
    own, nearest = found.dequantize(), expected.dequantize()  # not codes: small floats have two for 0
    # The largest magnitude of a symmetric group lies in the middle of two codes, but for the last place.
    tie = np.abs(np.abs(own - weight) - np.abs(nearest - weight)) <= 2.0**-22 * np.abs(weight)
    np.testing.assert_array_equal(own[~tie], nearest[~tie])
    assert (own != nearest).mean() <= 1 / 32


def test_no_option_changes_the_same_bytes_out():
    weight, inputs = torch.from_numpy(weights(40, 96)), torch.from_numpy(correlated(96))
    for text in ("int4 g32", "int3 asym g32", "nf4 g32"):
        one, two = (solved(text, weight, inputs, gptq()) for _ in range(2))
        for part in ("codes", "scale", "zero_point"):
            pair = [getattr(found, part) for found in (one, two)]
            assert pair == [None, None] or pair[0].numpy().tobytes() == pair[1].numpy().tobytes()


@pytest.mark.parametrize("text", ["int4 g32", "int4 asym g32", "int8 channel", "nf4 g32", "nvfp4", "int4 tensor"])
def test_numpy_in_numpy_out_with_the_codes_of_torch(text):
    weight, inputs = weights(24, 64), correlated(64)
    in_numpy = gptq()(weight, statistics(inputs), parse_scheme(text)).qtensor
    # The same moment: that of torch's own sums may differ in the last place.
    moment = statistics(inputs)["second_moment"]
    given = {"second_moment": SecondMoment(torch.from_numpy(moment.total), moment.count)}
    in_torch = gptq()(torch.from_numpy(weight), given, parse_scheme(text)).qtensor
    assert isinstance(in_torch.codes, torch.Tensor)
    in_numpy.map(check_numpy)
    np.testing.assert_array_equal(in_numpy.codes, in_torch.codes.numpy(), strict=True)
    np.testing.assert_array_equal(in_numpy.dequantize(), in_torch.dequantize().numpy(), strict=True)


def check_numpy(array):
    assert isinstance(array, np.ndarray)
    return array


def test_what_is_given_stays_as_it_was():
    weight, given = weights(24, 64), statistics(correlated(64))
    before, total = weight.copy(), given["second_moment"].total.copy()
    for order in ("none", "activation", "group-aware"):
        gptq(order=order)(weight, given, parse_scheme("int4 g16"))
        gptq(order=order)(torch.from_numpy(weight), given, parse_scheme("int4 tensor"))
    np.testing.assert_array_equal(weight, before)
    np.testing.assert_array_equal(given["second_moment"].total, total)


# What the options are there for.


@pytest.mark.parametrize("text", ["int4 channel", "int4 g16", "int3 asym g32", "int8 channel", "nf4 g16"])
def test_the_output_comes_nearer_and_the_weight_goes_farther(text):
    weight, inputs = weights(48, 64), correlated(64)
    moment = statistics(inputs)["second_moment"].result()
    found, nearest = solved(text, weight, inputs), quantize(weight, parse_scheme(text))
    assert output_error(weight, found, moment) < output_error(weight, nearest, moment)
    assert output_error(weight, found, np.eye(64)) > output_error(weight, nearest, np.eye(64))


@pytest.mark.parametrize("text", ["int4 channel", "int3 asym g16", "int4 tensor", "nf4 g16", "mxfp4", "int2 g32"])
@pytest.mark.parametrize("order", ["none", "group-aware"])
def test_sweeps_lower_the_error_and_never_raise_it(text, order):
    weight, inputs = weights(48, 64), correlated(64)
    # What descends is the error under the damped moment.
    moment = damped(statistics(inputs)["second_moment"].result())
    errors = [
        output_error(weight, solved(text, weight, inputs, replace(PLAIN, order=order, sweeps=sweeps)), moment)
        for sweeps in (0, 1, 2, 4, 8)
    ]
    assert errors[1] < errors[0]
    assert all(after <= before * (1 + SUMS) for before, after in pairwise(errors))


@pytest.mark.parametrize("text", ["int4 channel", "int3 asym g16", "nf4 g16", "int2 g32", "e4m3 channel", "binary g16"])
def test_fitted_scales_lower_the_error(text):
    weight, inputs = weights(48, 64), correlated(64)
    moment = damped(statistics(inputs)["second_moment"].result())
    before = solved(text, weight, inputs)
    after = solved(text, weight, inputs, replace(PLAIN, fit=True))
    np.testing.assert_array_equal(before.codes, after.codes)
    assert output_error(weight, after, moment) < output_error(weight, before, moment)


def test_a_fitted_scale_is_rounded_to_its_type():
    weight, inputs = weights(24, 64), correlated(64)
    scheme = parse_scheme("int4 g16").stored_as("float16")
    scale = gptq()(weight, statistics(inputs), scheme).qtensor.scale
    np.testing.assert_array_equal(scale.astype(np.float16).astype(np.float32), scale)


def mean_gain(worse, better, *, worse_text="int3 g16", better_text="int3 g16", skew=False):
    """Return by how many dB the error of `worse` is above that of `better`, as a mean over seeded draws."""
    gains = []
    for seed in range(4):
        weight, inputs = weights(16, 96, seed), correlated(96, seed=seed)
        if skew:
            weight = np.exp(weight)
        moment = statistics(inputs)["second_moment"].result()
        errors = [
            output_error(weight, solved(text, weight, inputs, algorithm), moment)
            for algorithm, text in ((worse, worse_text), (better, better_text))
        ]
        gains.append(10 * np.log10(errors[0] / errors[1]))
    return np.mean(gains)


def test_group_aware_order_beats_none():
    assert mean_gain(PLAIN, replace(PLAIN, order="group-aware")) > 0.2


def test_searched_scales_beat_the_largest_magnitude():
    assert mean_gain(PLAIN, replace(PLAIN, search=True)) > 0.2


def test_everything_beats_the_plain_loop():
    assert mean_gain(PLAIN, gptq()) > 1.0


def test_asymmetric_beats_symmetric_on_skewed_weights():
    assert mean_gain(gptq(), gptq(), better_text="int3 asym g16", skew=True) > 1.0


def test_one_token_of_huge_activations_decides_unless_tokens_count_alike():
    weight, inputs = weights(48, 64), correlated(64)
    sink = inputs.copy()
    sink[0] = correlated(64, seed=5)[0] * 1000
    others = sink[1:] / np.sqrt((sink[1:] ** 2).mean(axis=1, keepdims=True))
    moment = statistics(others)["second_moment"].result()
    errors = {}
    for relative in (False, True):
        algorithm = Gptq(relative=relative)
        [name] = algorithm.statistics
        statistic = (RelativeSecondMoment if relative else SecondMoment).init(64, sink)
        statistic.update(sink)
        found = algorithm(weight, {name: statistic}, parse_scheme("int3 g16")).qtensor
        errors[relative] = output_error(weight, found, moment)
    assert errors[True] < 0.5 * errors[False]


def test_auto_is_group_aware_up_to_4_bits_and_none_above():
    weight, inputs = weights(24, 64), correlated(64)
    named_orders = (("int4 g16", "group-aware"), ("int5 g16", "none"), ("nf4 g16", "group-aware"), ("e4m3 g16", "none"))
    for text, order in named_orders:
        auto, named, other = (
            solved(text, weight, inputs, gptq(order=which, sweeps=0)).codes
            for which in ("auto", order, {"none": "group-aware", "group-aware": "none"}[order])
        )
        np.testing.assert_array_equal(auto, named)
        assert (auto != other).any()


# Every scheme.

SCHEMES = [
    *(f"int{bits} g16{word}" for bits in range(2, 9) for word in ("", " asym", " narrow")),
    *("uint4 asym g16", "uint4 asym channel", "int4 float-zero g16", "int4 g32", "int4 channel", "int4 asym channel"),
    *("int4 tensor", "int4 asym tensor", "int4 tile16x32", "int4 channel:1", "int4 mse g16", "int4 channel:0x4"),
    *("e4m3 channel", "e2m1 g32", "nf4 g16", "ternary g16", "binary g16", "mxfp4", "nvfp4", "nf4-double"),
    "int1 asym g16",
]  # fmt: skip


# A width of 72 leaves the last group uneven.
@pytest.mark.parametrize(("order", "width"), [("none", 64), ("activation", 72), ("group-aware", 72)])
@pytest.mark.parametrize("text", SCHEMES)
def test_every_scheme_is_solved_no_worse_than_by_nearest(text, width, order):
    weight, inputs = weights(24, width), correlated(width)
    weight[3] = 0.0
    scheme, given = parse_scheme(text), statistics(inputs)
    solution = gptq(order=order)(weight, given, scheme)
    found, nearest = solution.qtensor, quantize(weight, scheme)
    assert isinstance(found, QTensor)
    assert (solution.damping, solution.remarks) == (0.01, ())
    assert found.scheme == scheme
    for part in ("codes", "zero_point"):
        own, expected = getattr(found, part), getattr(nearest, part)
        assert (own is None) == (expected is None)
        assert own is None or (own.shape, own.dtype) == (expected.shape, expected.dtype)
    assert found.scale_values().shape == scale_shape(weight.shape, scheme)
    assert found.scale_values().dtype == np.float32
    assert isinstance(found.scale, QTensor) == isinstance(nearest.scale, QTensor)
    assert np.isfinite(found.dequantize()).all()
    assert (found.scale_values() > 0).all()
    moment = given["second_moment"].result()
    assert output_error(weight, found, moment) <= output_error(weight, nearest, moment)


@pytest.mark.parametrize("text", ["int4 g16", "int4 asym g16", "int4 channel", "int8 asym channel", "nf4 g16", "mxfp4"])
def test_rows_of_zeros_stay_zeros(text):
    weight = weights(8, 64)
    weight[[0, 5]] = 0.0
    found = solved(text, weight, correlated(64), gptq())
    assert (found.dequantize()[[0, 5]] == 0.0).all()
    assert (solved(text, weight * 0, correlated(64), gptq()).dequantize() == 0.0).all()


@pytest.mark.parametrize("text", ["int1 asym g16", "int2 asym g16", "int4 asym g16", "uint4 asym channel"])
@pytest.mark.parametrize("sign", [1, -1])
def test_asymmetric_groups_of_one_sign(text, sign):

    # a scale of 0; the infinity that follows makes NaN of the rest of the row.
    weight = np.abs(weights(24, 64)) * np.float32(sign)
    weight[:, ::5] = 0.0
    found, inputs = solved(text, weight, correlated(64), gptq()), correlated(64)
    assert np.isfinite(found.dequantize()).all()
    assert (found.scale > 0).all()
    moment = statistics(inputs)["second_moment"].result()
    assert output_error(weight, found, moment) <= output_error(weight, quantize(weight, parse_scheme(text)), moment)


# Inputs that say little.


@pytest.mark.parametrize("order", ["none", "activation", "group-aware"])
@pytest.mark.parametrize("text", ["int4 tensor", "int4 channel", "int4 asym channel"])
def test_dead_columns_are_rounded_to_nearest(text, order):
    weight, inputs = weights(24, 64), correlated(64)
    dead = [0, 7, 8, 63]
    inputs[:, dead] = 0.0
    found = solved(text, weight, inputs, replace(PLAIN, order=order, sweeps=2))
    expected = quantize(weight, parse_scheme(text))
    np.testing.assert_array_equal(found.codes[:, dead], expected.codes[:, dead])
    assert np.isfinite(solved(text, weight, inputs, gptq(order=order)).dequantize()).all()


def test_dead_columns_in_groups_are_rounded_to_nearest_under_the_groups_scale():
    weight, inputs = weights(24, 64), correlated(64)
    inputs[:, 16:48] = 0.0
    found = solved("int4 g32", weight, inputs, PLAIN)
    scale = np.repeat(found.scale, 32, axis=1)[:, 16:48]
    expected = np.clip(np.rint(weight[:, 16:48] * (np.float32(1) / scale)), -8, 7)
    np.testing.assert_array_equal(found.codes[:, 16:48], expected)


@pytest.mark.parametrize("text", ["int4 g16", "int4 asym channel", "nf4 g16", "nvfp4"])
def test_inputs_along_one_direction_are_solved(text):
    weight = weights(24, 64)
    inputs = np.ones((50, 1), np.float32) * correlated(64)[:1]
    solution = gptq()(weight, statistics(inputs), parse_scheme(text))
    assert np.isfinite(solution.qtensor.dequantize()).all()
    moment = statistics(inputs)["second_moment"].result()
    nearest = quantize(weight, parse_scheme(text))
    assert output_error(weight, solution.qtensor, moment) < output_error(weight, nearest, moment)


def test_damping_that_is_too_little_is_raised_and_remarked():
    weight = weights(24, 64)
    inputs = np.ones((50, 1), np.float32) * correlated(64)[:1]
    solution = gptq(damping=1e-6)(weight, statistics(inputs), parse_scheme("int4 g16"))
    assert solution.damping > 1e-6
    [remark] = solution.remarks
    assert remark.startswith("damping raised from 1e-06 to ")
    assert np.isfinite(solution.qtensor.dequantize()).all()


@pytest.mark.parametrize("given", [None, {}])
def test_without_data_it_searches_scales_and_says_so(given):
    weight, scheme = weights(24, 64), parse_scheme("int4 g16")
    solution, plain = (gptq(search=search)(weight, given, scheme) for search in (True, False))
    np.testing.assert_array_equal(plain.qtensor.codes, quantize(weight, scheme).codes)
    assert solution.remarks == plain.remarks == ("there is no statistic of its input: rounded without data",)
    assert solution.damping is None
    assert solution.qtensor.scheme == scheme
    nearest, searched = (((own.qtensor.dequantize() - weight) ** 2).sum() for own in (plain, solution))
    assert searched < 0.9 * nearest


@pytest.mark.parametrize(
    ("count", "least", "why"),
    [(0, 0, "no calibration input reached it"), (30, 64, "30 tokens reached it, fewer than 64")],
)
def test_with_too_few_tokens_scales_are_searched_without_data_and_it_says_so(count, least, why):
    weight, scheme = weights(24, 64), parse_scheme("int4 g16")
    moment = SecondMoment.init(64, weight)
    moment.least = least
    moment.update(np.random.RandomState(1).standard_normal((count, 64)).astype(np.float32))
    solution = gptq()(weight, {"second_moment": moment}, scheme)
    assert solution.remarks == (f"{why}: rounded without data",)
    assert solution.damping is None
    # What it does on inputs without any correlation, whose second moment is the identity.
    plain = gptq()(weight, {"second_moment": SecondMoment.identity(64, weight)}, scheme)
    np.testing.assert_array_equal(solution.qtensor.codes, plain.qtensor.codes)
    nearest, searched = (
        ((own.dequantize() - weight) ** 2).sum() for own in (quantize(weight, scheme), solution.qtensor)
    )
    assert searched < 0.9 * nearest


def test_as_many_tokens_as_are_asked_for_are_used():
    weight, moment = weights(24, 64), SecondMoment.init(64, weights(24, 64))
    moment.least = 64
    moment.update(np.random.RandomState(1).standard_normal((64, 64)).astype(np.float32))
    assert gptq()(weight, {"second_moment": moment}, parse_scheme("int4 g16")).damping == 0.01


def test_inputs_that_are_all_zero_round_to_nearest():

    weight = weights(24, 64)
    solution = gptq()(weight, statistics(np.zeros((10, 64), np.float32)), parse_scheme("int4 g16"))
    np.testing.assert_array_equal(solution.qtensor.codes, quantize(weight, parse_scheme("int4 g16")).codes)


@pytest.mark.parametrize("power", [1e-12, 1e-6, 1e6, 1e12])
def test_the_size_of_the_inputs_does_not_matter(power):
    weight, inputs = weights(24, 64), correlated(64)
    moment = statistics(inputs)["second_moment"].result()
    expected = output_error(weight, solved("int4 g16", weight, inputs, gptq()), moment)
    found = output_error(weight, solved("int4 g16", weight, inputs * np.float32(power), gptq()), moment)
    assert found == pytest.approx(expected, rel=0.05)  # a rounded factor moves sums over ties here and there


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e6, 1e12])
def test_the_size_of_the_weights_does_not_matter(size):
    weight, inputs = weights(24, 64), correlated(64)
    moment = statistics(inputs)["second_moment"].result()
    expected = output_error(weight, solved("int4 asym g16", weight, inputs, gptq()), moment)
    scaled = weight * np.float32(size)
    found = output_error(scaled, solved("int4 asym g16", scaled, inputs, gptq()), moment) / size**2
    assert found == pytest.approx(expected, rel=0.05)  # as above


def test_inputs_that_are_not_finite_are_refused():
    inputs = correlated(64)
    inputs[3, 5] = np.nan
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        solved("int4 g16", weights(24, 64), inputs)


def test_few_rows_and_few_columns():
    for out, width in ((1, 64), (24, 1), (1, 1), (3, 2)):
        found = solved("int4 channel", weights(out, width), correlated(width), gptq())
        assert found.codes.shape == (out, width)
        assert np.isfinite(found.dequantize()).all()


def test_options_that_make_no_sense_are_refused():
    for options, message in (
        ({"order": "random"}, "order 'random' is none of auto, none, activation, group-aware"),
        ({"damping": 0.0}, r"damping 0.0 is outside \(0, 1\)"),
        ({"damping": 1.0}, r"damping 1.0 is outside \(0, 1\)"),
        ({"sweeps": -1}, "sweeps -1 is no number of times"),
        ({"sweeps": 1.5}, "sweeps 1.5 is no number of times"),
        ({"guided": True, "relative": False}, "guided says what a token counts, and relative = false does too"),
    ):
        with pytest.raises(RecipeError, match=f"^gptq: {message}"):
            Gptq(**options)
