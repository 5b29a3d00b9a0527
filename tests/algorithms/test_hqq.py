"""HQQ against its published iterations in float64, and what it is good for."""

import numpy as np
import pytest

import fewbit as fb
from fewbit.algorithms import solve
from fewbit.algorithms.hqq import Hqq
from fewbit.errors import PlanError, RecipeError, SchemeError
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

#: A power is rounded otherwise in each library, by one place of a float32; 20 iterations carry that on.
POWERS = 2e-5
#: Of a zero point near 8, after 20 means of float32 errors of about half a code.
NEAR = 2e-4


def laplace(*shape, size=1.0, seed=0):
    return (np.random.default_rng(seed).laplace(size=shape) * size).astype(np.float32)


def as_published(weight, size, bits, *, norm=0.7, beta=10.0, growth=1.01, iterations=20):
    """Return zero points (rows, groups) counted from the lowest code, float64: the iterations as the authors give them.

    They multiply by the inverse of the scale, and count codes from 0.
    """
    w = weight.astype(np.float64).reshape(len(weight), -1, size)
    low, high = w.min(2, keepdims=True), w.max(2, keepdims=True)
    inverse = (2**bits - 1) / (high - low)
    zero, best = -low * inverse, np.inf
    for _ in range(iterations):
        codes = np.clip(np.rint(w * inverse + zero), 0, 2**bits - 1)
        error = w - (codes - zero) / inverse
        with np.errstate(divide="ignore"):
            kept = np.sign(error) * np.maximum(np.abs(error) - np.abs(error) ** (norm - 1) / beta, 0)
        zero = (codes - (w - kept) * inverse).mean(2, keepdims=True)
        beta *= growth
        if np.abs(error).mean() >= best:
            break
        best = np.abs(error).mean()
    return zero[:, :, 0]


def left_over(weight, qtensor, power=2.0):
    return float((np.abs(qtensor.dequantize().astype(np.float64) - weight) ** power).sum())


@pytest.mark.parametrize(("bits", "size"), [(4, 64), (3, 32), (2, 64)])
@pytest.mark.parametrize(("options", "shrinks"), [({}, False), ({"beta": 1e3}, True), ({"norm": 0.5, "beta": 300.0,
                                                  "growth": 1.1, "iterations": 7}, True)])  # fmt: skip
def test_zero_points_are_those_of_the_published_iterations(bits, size, options, shrinks):
    weight = laplace(24, 128, size=0.05)
    found = Hqq(**options)(weight, None, parse_scheme(f"uint{bits} g{size} float-zero")).qtensor
    np.testing.assert_allclose(found.zero_point, as_published(weight, size, bits, **options), rtol=0, atol=NEAR)
    # The shrinkage has a say only where beta is large enough for errors as small as these.
    usual = as_published(weight, size, bits, **{**options, "beta": 10.0})
    assert (np.abs(found.zero_point - usual).max() > 2e-3) == shrinks


def test_codes_are_the_nearest_under_the_zero_points_found():
    weight, scheme = laplace(16, 128), parse_scheme("int3 g32 float-zero")
    found = Hqq()(weight, None, scheme).qtensor
    spread = found.zero_point.repeat(32, axis=1)
    expected = np.clip(np.rint(weight * (1.0 / found.scale.repeat(32, axis=1)) + spread), -4, 3)
    np.testing.assert_array_equal(found.codes, expected)
    np.testing.assert_array_equal(found.scale, quantize(weight, scheme).scale, strict=True)  # it leaves the scale alone


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_it_loses_less_than_nearest_rounding_and_more_than_least_squares(bits):
    weight = laplace(64, 256)
    nearest, hqq, fitted = (
        left_over(weight, solve(weight, parse_scheme(text), algorithm))
        for text, algorithm in (
            (f"int{bits} g64 float-zero", "nearest"),
            (f"int{bits} g64 float-zero", "hqq"),
            (f"int{bits} g64 float-zero lsq", "nearest"),
        )
    )
    assert fitted < hqq < nearest


def test_a_large_beta_lowers_the_norm_that_it_is_about():
    weight, scheme = laplace(64, 256), parse_scheme("int3 g64 float-zero")
    mean_matched, shrunk = (
        left_over(weight, Hqq(norm=0.5, beta=beta, iterations=40)(weight, None, scheme).qtensor, 0.5)
        for beta in (1e-6, 10.0)
    )
    assert shrunk < mean_matched


def test_every_framework_finds_the_same(xp):
    scheme = parse_scheme("int4 g16 float-zero")
    found = solve(xp.from_numpy(laplace(8, 64)), scheme, "hqq")
    expected = solve(laplace(8, 64), scheme, "hqq")
    np.testing.assert_allclose(xp.to_numpy(found.zero_point), expected.zero_point, atol=POWERS, rtol=POWERS)
    np.testing.assert_array_equal(xp.to_numpy(found.codes), expected.codes, strict=True)


def test_an_uneven_last_group_is_as_if_alone():
    weight, once = laplace(16, 112), Hqq(iterations=1)  # more would end by the mean error of all groups
    together = once(weight, None, parse_scheme("int4 g48 float-zero")).qtensor
    alone = once(weight[:, 96:], None, parse_scheme("int4 g16 float-zero")).qtensor
    # The sum of 16 numbers and 32 zeros groups its terms otherwise.
    np.testing.assert_allclose(together.zero_point[:, 2:], alone.zero_point, rtol=0, atol=2.0**-20)
    np.testing.assert_array_equal(together.codes[:, 96:], alone.codes)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "channel:1", "g48", "tile8x48"])
def test_every_granularity_gains(granularity):
    weight, scheme = laplace(16, 112), parse_scheme(f"int3 {granularity} float-zero")
    assert left_over(weight, solve(weight, scheme, "hqq")) < left_over(weight, quantize(weight, scheme))


def test_a_group_of_zeros_stays_zeros():
    weight = laplace(4, 64)
    weight[2] = 0.0
    found = solve(weight, parse_scheme("int4 g64 float-zero"), "hqq")
    np.testing.assert_array_equal(found.dequantize()[2], np.zeros(64))


def test_zero_points_fit_the_type_that_stores_them():
    scheme = parse_scheme("int4 g64 float-zero").stored_as("float16")
    found = solve(laplace(8, 256), scheme, "hqq")
    np.testing.assert_array_equal(found.zero_point, found.zero_point.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("text", ["int4 g64", "int4 g64 asym", "nf4 g64"])
def test_a_scheme_without_a_float_zero_point_is_a_problem_of_the_plan(text):
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(64, 8))
    recipe = fb.Recipe([fb.Rule("0", weight=text, algorithm="hqq")])
    message = rf"^0: hqq moves a zero point between the codes, and '{text}' has none; use .*'int4 g64 float-zero'"
    assert len(fb.plan(model, recipe).problems) == 1
    with pytest.raises(PlanError, match=message):
        fb.quantize(model, recipe)
    with pytest.raises(SchemeError, match="hqq moves a zero point between the codes"):
        Hqq()(laplace(8, 64), None, parse_scheme(text))


def test_a_recipe_names_it_with_its_options_and_the_run_needs_no_data():
    import torch

    recipe = fb.Recipe.from_text(
        '[[rules]]\nkind = "linear"\nweight = "int4 g16 float-zero"\nalgorithm = { name = "hqq", norm = 0.6 }'
    )
    assert recipe.rules[0].algorithm == fb.Hqq(norm=0.6)
    model = torch.nn.Sequential(torch.nn.Linear(64, 8))
    weight = model[0].weight.detach().numpy().copy()
    result = fb.quantize(model, recipe)
    expected = Hqq(norm=0.6)(weight, None, result.model[0].qtensor.scheme).qtensor
    np.testing.assert_array_equal(result.model[0].qtensor.codes.numpy(), expected.codes)
    assert (result.report.layers[0].algorithm, result.report.calibration) == ("hqq", None)


@pytest.mark.parametrize("options", [{"norm": 0.0}, {"norm": 1.5}, {"beta": -1.0}, {"beta": float("inf")},
                                     {"growth": 0.9}, {"growth": True}, {"iterations": 0}, {"norm": "a"}])  # fmt: skip
def test_an_option_out_of_range_is_refused_with_what_is_usual(options):
    [name] = options
    with pytest.raises(RecipeError, match=rf"^hqq: {name} .* is usual$"):
        Hqq(**options)
