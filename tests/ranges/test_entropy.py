"""The entropy search: what it keeps, what it cuts, and how near it comes to trying every threshold."""

import numpy as np
import pytest

from fewbit.qtensor import quantize
from fewbit.ranges.entropy import Entropy
from fewbit.schemes.notation import parse_scheme
from fewbit.statistics.histogram import Histogram

SYMMETRIC = parse_scheme("int8 tensor entropy").grid
DRAWS = {
    "normal": lambda draw, size: draw.standard_normal(size),
    "laplace": lambda draw, size: draw.laplace(size=size),
    "student": lambda draw, size: draw.standard_t(4, size),
    "lognormal": lambda draw, size: draw.lognormal(size=size),
}


def drawn(kind, size, seed=0):
    return DRAWS[kind](np.random.default_rng(seed), size).astype(np.float32)


def on_numbers(values, grid=SYMMETRIC):
    return float(Entropy()(values.reshape(1, -1), (1,), grid)[1][0, 0])


def on_the_histogram(values, grid=SYMMETRIC):
    seen = Histogram.init(1, values)
    seen.update(values.reshape(-1, 1))
    return float(Entropy().calibrated(seen, grid)[1])


def diverging(magnitudes, threshold, levels, per_level):
    """KL(P || Q), written anew, and its standard error."""
    magnitudes = magnitudes[magnitudes > 0].astype(np.float64)
    inside = magnitudes[magnitudes <= threshold]
    counts = np.histogram(inside, levels * per_level, (0.0, threshold))[0].astype(np.float64)
    q = np.maximum(np.repeat(counts.reshape(levels, -1).mean(1), per_level) / max(len(inside), 1), 1e-9)
    counts[-1] += len(magnitudes) - len(inside)
    p = counts / len(magnitudes)
    logs = np.log(p[p > 0] / q[p > 0])
    mean = float(p[p > 0] @ logs)
    return mean, np.sqrt(max(p[p > 0] @ logs**2 - mean**2, 0.0) / len(magnitudes))


def published(magnitudes, levels=128, bins=2048):
    """The threshold of the algorithm as published: bins of one width for all thresholds, spread over those occupied."""
    width = magnitudes.max() / bins
    counts = np.histogram(magnitudes, bins, (0.0, magnitudes.max()))[0].astype(np.float64)
    found = []
    for kept in range(levels, bins + 1):
        inside, level = counts[:kept], np.arange(kept) * levels // kept
        occupied = np.maximum(np.bincount(level, inside > 0, levels), 1)
        q = np.where(inside > 0, (np.bincount(level, inside, levels) / occupied)[level], 0.0)
        p = inside.copy()
        p[-1] += counts[kept:].sum()
        p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-9)
        found.append(float(p[p > 0] @ np.log(p[p > 0] / q[p > 0])))
    return (levels + int(np.argmin(found))) * width


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_zeros_behind_a_relu_do_not_draw_the_threshold_to_them(share, symmetric):
    values = np.abs(drawn("normal", 1 << 15))
    zeros = np.zeros(int(len(values) * share / (1 - share)), np.float32)
    grid = parse_scheme("int8 tensor entropy" if symmetric else "int8 tensor asym entropy").grid
    alone, beside = (on_the_histogram(own, grid) for own in (values, np.concatenate([values, zeros])))
    assert beside == alone > 2.0


def test_values_that_recur_do_not_draw_the_threshold_down_as_the_published_algorithm_lets_them():
    # As behind a first convolution: where an image is blank, each channel has one value.
    draw = np.random.default_rng(1)
    blank = np.repeat(draw.exponential(0.3, 24), 4000)
    values = np.concatenate([blank, draw.exponential(0.5, 100_000)]).astype(np.float32)
    assert (values > published(values)).mean() > 0.005
    for threshold in (on_numbers(values), on_the_histogram(values)):
        assert (values > threshold).mean() < 0.0005


@pytest.mark.parametrize("outlier", [100.0, 1e4])
def test_what_fills_the_range_is_kept_and_a_lone_outlier_is_cut(outlier):
    uniform = np.random.default_rng(3).uniform(-1, 1, 200_000).astype(np.float32)
    values = drawn("normal", 200_000)
    values[0] = outlier
    for search in (on_numbers, on_the_histogram):
        assert search(uniform) > 0.9
        assert 4.0 < search(values) < 30.0


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("count", [200, 2000])
def test_the_noise_of_few_numbers_clips_next_to_none_of_them(count, seed):
    values = drawn("normal", count, seed)
    assert (np.abs(values) > on_numbers(values, parse_scheme("int4 tensor entropy").grid)).mean() <= 0.01


@pytest.mark.parametrize("kind", ["normal", "laplace", "student"])
@pytest.mark.parametrize("bits", [4, 8])
def test_in_small_groups_it_costs_little_beside_the_extremes(kind, bits):
    values = drawn(kind, (64, 512))

    def error(text):
        return float(((quantize(values, parse_scheme(text)).dequantize() - values) ** 2).mean())

    # 2 dB: a group in which one number of 64 is clipped by an eighth of an octave; the mean over groups is nearer.
    assert error(f"int{bits} g64 entropy") < 1.6 * error(f"int{bits} g64")


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("count", [64, 4096, 100_000])
def test_halves_and_then_eighths_of_an_octave_diverge_as_little_as_every_eighth(kind, count):
    grid, levels = parse_scheme("int4 tensor entropy").grid, 8
    per_level = min(2048, count) // levels
    for seed in range(3):
        magnitudes = np.abs(drawn(kind, count, seed))
        every = magnitudes.max() * 2.0 ** (-np.arange(96) / 8.0)
        tried = [diverging(magnitudes, limit, levels, per_level) for limit in every]
        least, error = min(tried)
        found, _ = diverging(magnitudes, on_numbers(magnitudes, grid), levels, per_level)
        # Two standard errors are no difference to either; the third is for the two steps.
        assert found <= least + 3.0 * error
        assert max(divergence for divergence, _ in tried) > least + 30.0 * error


@pytest.mark.parametrize("kind", DRAWS)
def test_a_histogram_gives_the_threshold_of_its_numbers(kind):
    values = drawn(kind, 200_000)
    # Both choose among eighths of octaves, and counts at the edges of bins differ: two steps at most.
    assert abs(np.log2(on_the_histogram(values) / on_numbers(values))) <= 0.25 + 1e-3
