"""Quantizing a 4096 x 14336 matrix takes less than 1 GB beside it, its codes and scales included.

Claimed of matrices of the same width with fewer rows. What is held grows with the rows or stays, so the extra memory as
a multiple of the matrix never grows with it: a bound on a small matrix is a bound on the large one.
"""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from fewbit.qtensor import quantize
from fewbit.ranges.least_squares import LeastSquares
from fewbit.ranges.squared_error import SquaredError
from fewbit.schemes.notation import parse_scheme

ROWS, COLUMNS = 4096, 14336
MATRIX = 4 * ROWS * COLUMNS
LIMIT = 10**9 / MATRIX  # 4.26 times the matrix

#: One trial each instead of dozens: trials follow each other and hold the same memory.
SHORT = {
    "mse": SquaredError(steps=1),
    "lsq": LeastSquares(starts=1, rounds=1),
}
METHODS = ("absmax", "minmax", "percentile", "mse", "lsq", "entropy")
#: Rows that are enough for each granularity: several of the slices that it is worked on in.
SMALL = {"g64": 64, "channel": 64, "tensor": 64, "tile128x128": 256}
SYMMETRIES = ("sym", "asym")
#: What NumPy's stable sort takes beside its arrays, as a multiple of the matrix; tracemalloc does not see it.
UNSEEN = {"percentile": 0.5}


def scheme_of(text):
    scheme = parse_scheme(text)
    return replace(scheme, range_method=SHORT.get(scheme.ranging.name, scheme.ranging))


def extra_bytes(scheme, rows, importance=None):
    """The most bytes that `quantize` held at once; NumPy tells tracemalloc of its buffers."""
    weight = np.random.default_rng(0).standard_normal((rows, COLUMNS), dtype=np.float32)
    quantize(weight[:1, :256], scheme)  # what is imported late is no part of it
    tracemalloc.start()
    try:
        quantize(weight, scheme, importance)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def multiple(scheme, rows, importance=None):
    return extra_bytes(scheme, rows, importance) / (4 * rows * COLUMNS) + UNSEEN.get(scheme.ranging.name, 0.0)


@pytest.mark.parametrize(
    "text",
    [
        f"int4 {granularity} {symmetry} {method}"
        for method, granularity, symmetry in product(METHODS, SMALL, SYMMETRIES)
        if (method, granularity) != ("entropy", "g64")  # the next test: a fixed amount, too much for a small matrix
    ],
)
def test_every_range_method_at_every_granularity_needs_less_than_a_gigabyte(text):
    assert multiple(scheme_of(text), SMALL[text.split()[1]]) < LIMIT


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_entropy_of_small_groups_needs_a_fixed_amount_and_less_than_a_gigabyte(symmetry):
    # Histograms of the groups of one slice, however many slices follow; what grows is what absmax needs too.
    scheme = scheme_of(f"int4 g64 {symmetry} entropy")
    once, twice = (extra_bytes(scheme, rows) for rows in (9, 18))  # 9 rows make a slice
    assert twice < 1.05 * once
    assert twice + multiple(scheme_of(f"int4 g64 {symmetry}"), 64) * MATRIX < 10**9


@pytest.mark.parametrize(
    "text", [f"int4 {granularity} {method} by importance" for granularity in SMALL for method in ("mse", "lsq")]
)
def test_searching_by_importance_needs_less_than_a_gigabyte(text):
    scheme = scheme_of(text.removesuffix(" by importance"))
    assert multiple(scheme, SMALL[text.split()[1]], np.ones(COLUMNS, np.float32)) < LIMIT


@pytest.mark.parametrize(
    "text",
    [
        "mxfp4", "nvfp4", "nf4-double", "nf4 g64", "e4m3 channel", "e4m3 tensor", "ternary g64 lsq",
        "int3 g100 float-zero lsq", "ternary tensor lsq",
    ],
)  # fmt: skip
def test_floats_codebooks_and_quantized_scales_need_less_than_a_gigabyte(text):
    assert multiple(scheme_of(text), 128) < LIMIT


@pytest.mark.parametrize("granularity", SMALL)
@pytest.mark.parametrize("method", ["absmax", "percentile", "lsq"])
def test_twice_the_rows_need_at_most_twice_the_extra_memory(method, granularity):
    # Why a small matrix is enough above. A whole tensor: exactly twice; in slices: less, for what a slice needs stays.
    scheme = scheme_of(f"int4 {granularity} {method}")
    once, twice = (extra_bytes(scheme, rows) for rows in (SMALL[granularity], 2 * SMALL[granularity]))
    assert twice <= 2.02 * once
    if granularity == "tensor":
        assert twice >= 1.98 * once
