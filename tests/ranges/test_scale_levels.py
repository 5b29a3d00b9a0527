"""Scales that are levels of a format: as good as the best of all levels, tried one by one."""

import numpy as np
import pytest
import torch

from fewbit.algorithms.gptq import Gptq
from fewbit.algorithms.nearest import Nearest
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme
from fewbit.statistics.second_moment import RelativeSecondMoment, SecondMoment

#: Formats whose scales are quantized.
LEVELLED = ("mxfp4", "mxfp6", "mxfp6e3m2", "mxfp8", "mxfp8e5m2", "nvfp4", "nf4-double")
#: Those whose elements span so many binades that the power of two which the extremes ask for is the best one here.
WIDE = ("mxfp6e3m2", "mxfp8", "mxfp8e5m2")


def weights(rows=6, width=96):
    return (np.random.default_rng(0).standard_t(4, (rows, width)) * 0.03).astype(np.float32)


def powers(width=96):
    """What the columns count, over three orders of magnitude."""
    return np.exp(2.0 * np.random.default_rng(1).standard_normal(width)).astype(np.float32)


def errors(values, weight, counts, size):
    """Return the weighted squared error of each group, float64 (rows, groups)."""
    squared = (values.astype(np.float64) - weight) ** 2 * counts
    return np.add.reduceat(squared, np.arange(0, weight.shape[1], size), axis=1)


def best_of_all_levels(found, weight, counts):
    """Return the least error of each group over every level from 0.4 to 1.6 of what the extremes ask for."""
    scheme, inner = found.scheme, found.scale
    size, form = scheme.granularity.size, inner.scheme.format
    unit = np.asarray(inner.scale_values()).repeat(-(-inner.shape[0] // inner.scale.shape[0]), 0)[: inner.shape[0]]
    unit = unit.repeat(-(-inner.shape[1] // inner.scale.shape[1]), 1)[:, : inner.shape[1]]
    extremes = np.maximum.reduceat(np.abs(weight), np.arange(0, weight.shape[1], size), axis=1) / scheme.format.reach
    best = np.full(extremes.shape, np.inf)
    for level in form.levels:
        if level <= 0:
            continue
        scale = (np.float32(level) * unit).astype(np.float32)
        wide = scale.repeat(size, 1)[:, : weight.shape[1]]
        with np.errstate(over="ignore"):
            values = scheme.format.decode(scheme.format.encode(weight * (np.float32(1) / wide))) * wide
        tried = (scale >= 0.4 * extremes) & (scale <= 1.6 * extremes)
        best = np.where(tried, np.minimum(best, errors(values, weight, counts, size)), best)
    return best


# A width of 72 leaves the last group uneven.
@pytest.mark.parametrize("width", [96, 72])
@pytest.mark.parametrize("text", LEVELLED)
def test_a_weighted_search_finds_the_best_of_all_levels(text, width):
    weight, counts = weights(width=width), powers(width)
    found = quantize(weight, parse_scheme(f"{text} mse"), counts)
    size = found.scheme.granularity.size
    own = errors(found.dequantize(), weight, counts, size)
    # Sums of the search are float32.
    assert (own <= best_of_all_levels(found, weight, counts) * (1 + 1e-5)).all()
    plain = quantize(weight, parse_scheme(text))
    assert (errors(plain.dequantize(), weight, counts, size) > own * (1 + 1e-5)).any() == (text not in WIDE)
    # What the levels are counted in comes from the extremes, before any group is searched.
    np.testing.assert_array_equal(plain.scale.scale_values(), found.scale.scale_values())


@pytest.mark.parametrize("text", LEVELLED)
def test_the_search_gives_the_same_bits_in_every_framework(text, xp):
    weight, scheme = weights(), parse_scheme(f"{text} mse")
    expected, found = (
        quantize(weight, scheme, powers()),
        quantize(xp.from_numpy(weight), scheme, xp.from_numpy(powers())),
    )
    np.testing.assert_array_equal(xp.to_numpy(found.scale.codes), expected.scale.codes)
    np.testing.assert_array_equal(xp.to_numpy(found.codes), expected.codes)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("text", LEVELLED)
def test_compiled_loops_give_the_bits_of_whole_arrays(text, weighted, monkeypatch):
    weight = weights(37, 160)
    weight[3], weight[6, :20] = 0.0, 1e-39  # zeros, and numbers that float32 holds as subnormals only
    weight[7] *= 1e-38
    weight[8] = np.round(weight[8] * 64) / 64  # ties
    scheme, counts = parse_scheme(f"{text} mse"), powers(160) if weighted else None
    found = quantize(weight, scheme, counts)
    for module in ("fewbit.qtensor", "fewbit.ranges.scale_levels"):
        monkeypatch.setattr(f"{module}.are_compiled", lambda *_: False)
    expected = quantize(weight, scheme, counts)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scale.codes, expected.scale.codes)


def test_groups_of_zeros_keep_their_scale_and_erase_nothing():
    weight = weights()
    weight[2] = 0.0
    for text in LEVELLED:
        found, plain = (quantize(weight, parse_scheme(one), powers()) for one in (f"{text} mse", text))
        np.testing.assert_array_equal(found.scale.codes[2], plain.scale.codes[2])
        assert (found.scale_values() > 0).all()
        assert (found.dequantize()[2] == 0).all()


@pytest.mark.parametrize(("text", "levels"), [("ternary g32", (-1.0, 0.0, 1.0)), ("binary g32", (-1.0, 1.0))])
def test_signs_get_the_magnitude_of_least_weighted_error(text, levels):
    """TWN and XNOR-Net: over every set of the largest numbers, the weighted mean of their magnitudes."""
    weight, counts = weights(), powers()
    found = quantize(weight, parse_scheme(text), counts)
    own = errors(found.dequantize(), weight, counts, 32)
    for row, group in np.ndindex(own.shape):
        part = slice(32 * group, 32 * group + 32)
        sizes, count = np.abs(weight[row, part]).astype(np.float64), counts[part].astype(np.float64)
        order = np.argsort(-sizes)
        least = 32 if 0.0 not in levels else 1
        means = [
            (np.sum((count * sizes)[order[:number]]) ** 2 / np.sum(count[order[:number]]))
            for number in range(least, 33)
        ]
        exact = np.sum(count * sizes**2) - max(means)
        # Alternation ends where codes and magnitude agree, from the best of many starts.
        assert own[row, group] <= exact * (1 + 1e-3)


def moments(kind=SecondMoment, width=96, seed=3):
    """Return the second moment of correlated inputs, and the inputs."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((width, width)) * np.exp(rng.standard_normal(width)) / np.sqrt(width) + np.eye(width)
    inputs = (rng.standard_normal((1024, width)) @ mixed).astype(np.float32)
    moment = kind.init(width, torch.zeros(1))
    moment.update(torch.from_numpy(inputs))
    return moment


ALL = (*LEVELLED, "nf4 g32", "ternary g32", "binary g32", "int4 g32")


def weighted_error(values, weight, moment):
    return float((((values - weight) ** 2) * moment.diagonal()).sum())


@pytest.mark.parametrize("text", ALL)
def test_weighted_nearest_beats_the_usual_range_in_weighted_error(text):
    weight, moment = weights(32), moments(RelativeSecondMoment)
    scheme = parse_scheme(text)
    found = Nearest(weighted=True)(weight, {"relative_second_moment": moment}, scheme).qtensor
    assert found.scheme == scheme
    plain = quantize(weight, scheme)
    own, usual = (weighted_error(q.dequantize(), weight, moment.result().numpy()) for q in (found, plain))
    assert own < usual or (text in WIDE and own == usual)


@pytest.mark.parametrize("text", ALL)
def test_gptq_beats_weighted_nearest_on_correlated_inputs(text):
    weight, moment = weights(32), moments()
    matrix = moment.result().numpy()

    def output_error(values):
        return float((((values - weight) @ matrix) * (values - weight)).sum())

    scheme = parse_scheme(text)
    found = Gptq(relative=False)(weight, {"second_moment": moment}, scheme).qtensor
    nearest = quantize(weight, parse_scheme(f"{text} mse") if "ary" not in text else scheme, matrix.diagonal())
    assert output_error(found.dequantize()) < 0.8 * output_error(nearest.dequantize())


@pytest.mark.parametrize("text", ["mxfp4", "nvfp4", "nf4-double"])
def test_gptq_without_search_rounds_scales_of_extremes_to_levels(text):
    weight, moment = weights(32), moments()
    scheme = parse_scheme(text)
    found = Gptq(relative=False, search=False, order="none", sweeps=0)(
        weight, {"second_moment": moment}, scheme
    ).qtensor
    # The first group is chosen before any error has reached it.
    expected = quantize(weight, scheme).scale_values()[:, 0]
    np.testing.assert_array_equal(found.scale_values()[:, 0], expected)
    searched = Gptq(relative=False, order="none", sweeps=0)(weight, {"second_moment": moment}, scheme).qtensor
    assert (searched.scale_values()[:, 0] != expected).any()


@pytest.mark.parametrize("text", ["mxfp4 mse", "nvfp4 lsq", "nf4-double mse"])
def test_a_whole_scheme_with_a_search_has_a_name_that_is_read_back(text):
    assert str(parse_scheme(text)) == text
    assert parse_scheme(text) != parse_scheme(text.split()[0])
