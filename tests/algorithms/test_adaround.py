"""AdaRound: a smaller error of the output under a larger one of the weights, between the levels around each weight."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.algorithms import ALGORITHMS, parse_algorithm
from fewbit.algorithms.adaround import AdaRound
from fewbit.catalogue import lookup
from fewbit.errors import RecipeError, SchemeError
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme
from fewbit.statistics.grouped_moment import GroupedMoment
from fewbit.statistics.second_moment import RelativeSecondMoment, SecondMoment

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH = 64
WEIGHT = (np.random.default_rng(0).normal(size=(32, WIDTH)) / 8).astype(np.float32)
SCHEMES = [
    "int2 g32 asym", "int3 g32", "int4 channel", "int8 channel", "int4 tensor", "int4 tensor asym", "int2 g32 float-zero",
    "int4 narrow channel", "uint4 g32 asym", "nf4 g32", "ternary g32", "e2m1 g32", "e4m3 channel", "nvfp4", "mxfp4", "kmeans3 channel",
    "q4_0", "q4_1",
]  # fmt: skip


def rows(seed, count=800, width=WIDTH):
    """Return inputs whose channels are correlated and of different size."""
    draw = np.random.default_rng(7)
    mixed = draw.normal(size=(width, width)) / 8 * np.exp(0.5 * draw.normal(size=width))
    return (np.random.default_rng(seed).normal(size=(count, width)) @ mixed + 0.2).astype(np.float32)


def moment(seed, count=800, kind=SecondMoment):
    found = kind.init(WIDTH, WEIGHT)
    found.update(rows(seed, count))
    return found


SEEN, OTHER = moment(1), moment(2)


def error(qtensor, own=SEEN, weight=WEIGHT):
    """Return tr((W' - W) H (W' - W)^T) by row, in float64."""
    off = np.asarray(qtensor.dequantize(), np.float64) - weight
    return ((off @ own.result().astype(np.float64)) * off).sum(1)


@cache
def solved(text, **options):
    algorithm = AdaRound(**options)
    return algorithm(WEIGHT, {algorithm.statistics[0]: SEEN}, parse_scheme(text))


def around(start):
    """Return the values of the levels below and above each weight, found by looking at all of them."""
    form = start.scheme.format
    codes = np.arange(8) if start.codebook is not None else form.encode(np.asarray(form.levels, np.float32))
    every = [replace(start, codes=np.full_like(start.codes, code)).dequantize() for code in np.unique(codes)]
    levels = np.stack(every)
    below, above = np.where(levels <= WEIGHT, levels, -np.inf).max(0), np.where(levels >= WEIGHT, levels, np.inf).min(0)
    return np.where(np.isfinite(below), below, above), np.where(np.isfinite(above), above, below)


# What it computes.


@pytest.mark.parametrize("text", SCHEMES)
def test_the_output_comes_nearer_also_on_other_inputs_while_the_weights_go_farther(text):
    found, start = solved(text).qtensor, quantize(WEIGHT, parse_scheme(text))
    assert error(found).sum() < 0.8 * error(start).sum()
    assert error(found, OTHER).sum() < 0.9 * error(start, OTHER).sum()
    far, near = (np.square(own.dequantize() - WEIGHT).sum() for own in (found, start))
    assert far > near
    # float32 sums decide by a part in a hundred thousand.
    assert (error(found) <= error(start) * (1 + 1e-5)).all()


@pytest.mark.parametrize("text", SCHEMES)
def test_every_code_is_that_of_the_level_below_or_above_and_the_scales_stay(text):
    found, start = solved(text).qtensor, quantize(WEIGHT, parse_scheme(text))
    assert np.array_equal(found.scale_values(), start.scale_values())
    assert found.zero_point is start.zero_point or np.array_equal(found.zero_point, start.zero_point)
    below, above = around(start)
    values = found.dequantize()
    moved = values != start.dequantize()
    assert moved.any()
    assert ((values == below) | (values == above))[moved].all()
