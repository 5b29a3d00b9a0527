"""Histograms as paths: they hold what was counted, in the units of the drawing."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from fewbit.evaluation.level_histogram import axis, level_histogram
from fewbit.qtensor import quantize
from fewbit.report.drawing import HEIGHT, codes_path, scale_of, weights_path
from fewbit.schemes.notation import parse_scheme


def histogram(scheme):
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    return level_histogram(weight, quantize(weight, parse_scheme(scheme)))


def corners(path):
    """The corners of a path of M, V, H, h and z."""
    x = y = 0.0
    for step, number, second in re.findall(r"([MVHhz])(-?[\d.]+)?(?: (-?[\d.]+))?", path):
        if step == "M":
            x, y = float(number), float(second)
        elif step == "V":
            y = float(number)
        elif step == "H":
            x = float(number)
        elif step == "h":
            x += float(number)
        yield x, y


def area(path):
    """The area between a path and the line at its first height."""
    points = list(corners(path))
    base = points[0][1]
    return sum((right - left) * (base - y) for (left, _), (right, y) in itertools.pairwise(points))


@pytest.mark.parametrize("scheme", ["int4 g64", "nf4 g64", "int4 g64 asym", "e2m1 g64", "int2 channel"])
def test_weights_and_codes_enclose_the_same_area(scheme):
    own = histogram(scheme)
    weights, codes = weights_path(own), codes_path(own)
    # Heights are whole numbers of 200, and places have two decimals.
    assert area(codes) == pytest.approx(area(weights), rel=0.02)
    assert min(y for path in (weights, codes) for _, y in corners(path)) == 0.0
    assert max(y for path in (weights, codes) for _, y in corners(path)) == HEIGHT
    assert max(x for x, _ in corners(weights)) == len(own.weights)


def test_the_bins_of_a_drawing_are_those_of_the_counts():
    own = dataclasses.replace(histogram("ternary channel"), weights=(0, 0, 4, 4, 2, 0, 0, 1), codes=None)
    assert weights_path(own) == "M0 200V200h2V0h2V100h1V200h2V150h1V200z"
    assert codes_path(own) == ""


def test_few_in_a_bin_are_seen_all_the_same():
    own = dataclasses.replace(histogram("ternary channel"), weights=(0, 1, 1_000_000), codes=None)
    assert weights_path(own) == "M0 200V200h1V199h1V0h1V200z"


@pytest.mark.parametrize(
    ("scheme", "labels"),
    [
        ("int4", ["-8", "-6", "-4", "-2", "0", "2", "4", "6"]),
        ("int2", ["-2", "-1", "0", "1"]),
        ("int8", ["-100", "-50", "0", "50", "100"]),
        ("nf4", ["-1", "-0.5", "0", "0.5", "1"]),
        ("e4m3", ["-400", "-300", "-200", "-100", "0", "100", "200", "300", "400"]),
        ("binary", ["-1", "1"]),
    ],
)
def test_an_axis_is_labelled_with_few_round_numbers(scheme, labels):
    levels = parse_scheme(scheme).format.levels
    scale = scale_of(levels)
    assert [words for words, _ in scale.labels] == labels
    start, width, bins = axis(levels)
    for words, place in scale.labels:
        # Places are percent with two decimals.
        assert float(place) == pytest.approx(100 * ((float(words) - start) / width + 0.5) / bins, abs=0.005)
    assert scale.marks.count("M") == len(levels)
