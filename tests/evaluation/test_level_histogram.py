"""How weights lie on levels: every count against one that is done weight by weight."""

from __future__ import annotations

import numpy as np
import pytest

from fewbit.evaluation.level_histogram import axis, level_histogram
from fewbit.formats import FORMATS
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

SCHEMES = (
    "int4 g64", "int4 g64 asym", "int4 g64 float-zero", "int4 narrow channel", "int2 g32 asym", "int8 channel",
    "uint4 g32 asym", "int3 g40", "e4m3 channel", "e5m2 tensor", "e4m3fnuz channel", "nf4 g64", "binary g64",
    "ternary channel", "int4 channel:1", "int4 channel:0x4", "e4m3 tile16x48", "mxfp4", "nvfp4", "nf4-double",
)  # fmt: skip


def weight_of(rows=24, columns=128, seed=0):
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    weight[3] *= 100.0
    weight[5, :64] = 0.0
    return weight


def one_by_one(weight, qtensor):
    """Counts of a histogram, by the definitions and in float64, one weight after the other."""
    levels = qtensor.scheme.format.levels
    start, width, bins = axis(levels)
    box = qtensor.scheme.granularity.box(weight.shape)
    scale = np.asarray(qtensor.scale_values(), np.float64)
    zero = np.zeros_like(scale) if qtensor.zero_point is None else np.asarray(qtensor.zero_point, np.float64)
    values = np.asarray(qtensor.scheme.format.decode(qtensor.codes), np.float64)
    half = (levels[1] - levels[0]) / 2, (levels[-1] - levels[-2]) / 2
    weights, codes, clipped = [0] * bins, [0] * len(levels), [0, 0]
    for (i, j), number in np.ndenumerate(weight.astype(np.float64)):
        place = i // box[0], j // box[1]
        unit = number / scale[place] + zero[place]
        weights[min(max(int(np.floor((unit - start) / width + 0.5)), 0), bins - 1)] += 1
        codes[levels.index(values[i, j])] += 1
        clipped[0] += unit < (levels[0] - half[0]) * (1 + 2**-8)
        clipped[1] += unit > (levels[-1] + half[1]) * (1 + 2**-8)
    return weights, codes, tuple(clipped)


@pytest.mark.parametrize("text", SCHEMES)
def test_every_count_is_that_of_counting_one_by_one(text):
    weight = weight_of()
    qtensor = quantize(weight, parse_scheme(text))
    found = level_histogram(weight, qtensor)
    weights, codes, clipped = one_by_one(weight, qtensor)
    # float32 division may put a weight that lies on the border of two bins into the other one.
    assert np.abs(np.subtract(found.weights, weights)).sum() <= 2 * weight.size / 1000
    assert sum(found.weights) == weight.size
    assert found.clipped == clipped
    assert found.used == np.count_nonzero(codes)
    assert found.codes == (tuple(codes) if len(codes) <= 64 else None)


def test_the_counts_are_the_same_in_every_framework_and_however_rows_are_cut(xp, monkeypatch):
    weight = weight_of()
    for text in ("int4 g64 asym", "e4m3 tile16x48"):
        expected = level_histogram(weight, quantize(weight, parse_scheme(text)))
        monkeypatch.setattr("fewbit.evaluation.level_histogram._AT_ONCE", 7 * 128)
        own = xp.from_numpy(weight)
        assert level_histogram(own, quantize(own, parse_scheme(text))) == expected
        monkeypatch.undo()


def test_bfloat16_weights_are_counted_as_what_they_are():
    import torch

    weight = torch.from_numpy(weight_of()).bfloat16()
    found = level_histogram(weight, quantize(weight.float(), parse_scheme("int4 g64")))
    assert found == level_histogram(weight.float(), quantize(weight.float(), parse_scheme("int4 g64")))


def test_an_uneven_last_group_is_counted_by_its_own_scale_and_without_filling():
    weight = weight_of(columns=100)
    qtensor = quantize(weight, parse_scheme("int4 g64"))
    found = level_histogram(weight, qtensor)
    assert sum(found.weights) == sum(found.codes) == 24 * 100
    assert list(found.weights) == one_by_one(weight, qtensor)[0]


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("e8m0", "int16", "uint16")])
def test_the_axis_holds_every_level_in_few_bins(name):
    levels = parse_scheme(f"{name} tensor asym" if name in ("int1", "uint1") else f"{name} tensor").format.levels
    start, width, bins = axis(levels)
    assert 40 <= bins <= 81
    assert start < levels[0] - width / 2
    assert start + (bins - 1) * width > levels[-1] + width / 2
    assert np.log2(width) == round(np.log2(width))
    assert start / width == round(start / width)


def test_clipping_is_seen_and_the_rounding_of_a_scale_is_not_clipping():
    weight = weight_of()
    assert level_histogram(weight, quantize(weight, parse_scheme("int4 g64"))).clipped == (0, 0)
    rounded = quantize(weight, parse_scheme("int4 g64").stored_as("float16"))
    assert (np.abs(weight).reshape(24, 2, 64).max(-1) / rounded.scale > 7.5).any()  # some scales went down
    assert level_histogram(weight, rounded).clipped == (0, 0)
    narrow = quantize(weight, parse_scheme("int4 g64 percentile"))
    lowest, highest = level_histogram(weight * np.float32(2.0), narrow).clipped
    assert lowest > 0
    assert highest > 0


def test_scales_are_summed_up_as_least_median_and_greatest():
    weight = np.repeat(np.asarray([[7.5], [15.0], [75.0]], np.float32), 4, axis=1)
    found = level_histogram(weight, quantize(weight, parse_scheme("int4 channel")))
    assert found.scales == pytest.approx((1.0, 2.0, 10.0), rel=1e-7)  # a float32 constant away from it
