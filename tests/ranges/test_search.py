"""Range methods that search: they lower the error they are meant to lower, weighted where asked, in slices alike."""

import numpy as np
import pytest
import torch

import fewbit.box_bounds
import fewbit.ranges.grid
from fewbit.errors import SchemeError
from fewbit.qtensor import quantize
from fewbit.ranges.entropy import Entropy
from fewbit.ranges.fixed import Fixed
from fewbit.ranges.least_squares import LeastSquares
from fewbit.ranges.percentile import Percentile
from fewbit.ranges.squared_error import SquaredError
from fewbit.schemes.notation import parse_scheme

DRAWS = {
    "normal": lambda random: random.normal(size=(64, 512)),
    "laplace": lambda random: random.laplace(size=(64, 512)),
    "student": lambda random: random.standard_t(4, size=(64, 512)),
}


def drawn(kind):
    return DRAWS[kind](np.random.default_rng(1)).astype(np.float32)


def mean_square_error(values, text, importance=None):
    difference = (quantize(values, parse_scheme(text), importance).dequantize() - values).astype(np.float64) ** 2
    return float((difference if importance is None else difference * importance).mean())


def half_quadratic(values, bits, size=64, exponent=0.7, beta=10.0):
    """Mean squared error of HQQ's solver: float zero point, scale from the extremes."""
    groups = torch.from_numpy(values).reshape(-1, size)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    inverse = (2**bits - 1) / (high - low)
    zero = best_zero = -low * inverse
    least = float("inf")
    for _ in range(20):
        codes = (groups * inverse + zero).round().clamp(0, 2**bits - 1)
        rest = groups - (codes - zero) / inverse
        if float(rest.abs().mean()) >= least:
            break
        least, best_zero = float(rest.abs().mean()), zero
        shrunk = rest.sign() * (rest.abs() - rest.abs().clamp(min=1e-12) ** (exponent - 1) / beta).relu()
        zero = (codes - (groups - shrunk) * inverse).mean(1, keepdim=True)
        beta *= 1.01
    codes = (groups * inverse + best_zero).round().clamp(0, 2**bits - 1)
    return float(((codes - best_zero) / inverse - groups).double().square().mean())


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize(
    "scheme", ["int4 g64", "int3 g64", "int4 g64 asym", "int2 g64 asym", "e4m3 channel", "nf4 g64"]
)
@pytest.mark.parametrize("method", ["mse", "lsq"])
def test_searching_is_never_worse_than_the_extremes_and_better_for_few_bits(kind, scheme, method):
    values = drawn(kind)
    searched, plain = mean_square_error(values, f"{scheme} {method}"), mean_square_error(values, scheme)
    assert searched <= plain
    if scheme.startswith("int"):
        assert searched < 0.97 * plain  # at least 3 % on each of these, or the search does nothing


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_least_squares_beats_the_half_quadratic_solver(kind, bits):
    values = drawn(kind)
    solver = half_quadratic(values, bits)
    assert mean_square_error(values, f"int{bits} g64 float-zero lsq") < 0.96 * solver
    if bits < 4:  # at 4 bits only a zero point between codes, as the solver has, can win
        assert mean_square_error(values, f"int{bits} g64 asym lsq") < solver


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_least_squares_is_never_worse_than_shrinking(kind, bits):
    values = drawn(kind)
    for words in ("", " asym"):
        scheme = f"int{bits} g64{words}"
        assert mean_square_error(values, f"{scheme} lsq") <= mean_square_error(values, f"{scheme} mse")


def test_an_uneven_last_group_is_ranged_as_if_it_stood_alone():
    values = drawn("normal")[:, :80]
    for text in (
        "int4 g64 entropy",
        "int4 g64 percentile",
        "int4 g64 asym lsq",
        "binary g64",
        "int4 g64 float-zero lsq",
    ):
        scheme = parse_scheme(text)
        whole, alone = quantize(values, scheme), quantize(values[:, 64:], scheme)
        np.testing.assert_array_equal(whole.scale[:, 1:], alone.scale, err_msg=text)
    tiles = quantize(values[:50], parse_scheme("int4 tile32x64 percentile"))
    corner = quantize(values[32:50, 64:], parse_scheme("int4 tensor percentile"))
    assert tiles.scale[1, 1] == corner.scale[0, 0]


def test_a_group_of_zeros_stays_next_to_nothing_in_binary():
    values = drawn("normal")[:4, :64]
    values[2] = 0.0
    quantized = quantize(values, parse_scheme("binary g64"))
    assert np.abs(quantized.dequantize()[2]).max() == 2.0**-126
    assert np.abs(quantized.dequantize()[1]).min() > 0.1


@pytest.mark.parametrize("method", ["mse", "lsq"])
def test_importance_lowers_the_error_where_it_lies(method):
    values = drawn("student")
    importance = np.exp(np.random.default_rng(2).normal(size=512) * 2).astype(np.float32)
    text = f"int3 g64 {method}"
    weighted = (quantize(values, parse_scheme(text), importance).dequantize() - values) ** 2 * importance
    plain = (quantize(values, parse_scheme(text)).dequantize() - values) ** 2 * importance
    assert weighted.mean() < 0.9 * plain.mean()


@pytest.mark.parametrize("text", ["int4 g64 asym lsq", "int8 tensor mse", "int4 tile100x64", "e4m3 tensor", "nvfp4"])
def test_working_in_slices_changes_nothing(monkeypatch, text):
    values = drawn("normal")
    whole = quantize(values, parse_scheme(text))
    for module in (fewbit.box_bounds, fewbit.ranges.grid):
        monkeypatch.setattr(module, "numbers_at_once", lambda values: 5000)
    sliced = quantize(values, parse_scheme(text))
    np.testing.assert_array_equal(sliced.codes, whole.codes)
    if "mse" not in text:
        np.testing.assert_array_equal(sliced.scale_values(), whole.scale_values())


def test_percentile_is_the_quantile_of_magnitudes():
    values = drawn("student")
    scale = quantize(values, parse_scheme("int8 channel percentile")).scale[:, 0]
    expected = np.quantile(np.abs(values), 0.999, axis=1) / 127.5
    np.testing.assert_allclose(scale, expected, rtol=1e-5)  # float32 against float64 interpolation
    low, high = Percentile(99.0)(values, (1,), parse_scheme("int8 asym").grid)
    np.testing.assert_allclose(low[:, 0], np.quantile(values, 0.01, axis=1), rtol=1e-4)
    np.testing.assert_allclose(high[:, 0], np.quantile(values, 0.99, axis=1), rtol=1e-4)


def test_fixed_bounds_are_used_as_given():
    low, high = Fixed(2.0, -1.0)(drawn("normal"), (1,))
    assert (set(low.ravel().tolist()), set(high.ravel().tolist())) == ({-1.0}, {2.0})
    assert low.shape == (64, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Percentile(101), r"percentile 101 is outside \(50, 100\]"),
        (lambda: SquaredError(steps=0), "mse needs steps >= 1"),
        (lambda: LeastSquares(smallest=1.0), "lsq needs"),
        (lambda: Entropy(bins=10), "entropy needs at least 256 bins"),
        (lambda: Fixed(-1.0), "do not hold 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, message):
    with pytest.raises(SchemeError, match=message):
        make()
