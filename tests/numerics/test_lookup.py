"""Ranks by the first bits of a number are those by comparing, at every number that could be told apart wrongly."""

import numpy as np
import pytest
import torch

from fewbit.formats.codebook import BINARY, NF4, TERNARY, Codebook
from fewbit.numerics.buckets import buckets_for
from fewbit.numerics.lookup import rank

DRAW = np.random.default_rng(0)
TABLES = {
    "nf4": NF4.thresholds,
    "binary": BINARY.thresholds,
    "ternary": TERNARY.thresholds,
    "tiny": Codebook((-1e-40, 0.0, 3e-38, 1.0)).thresholds,
    "many": tuple(float(np.float32(2.0**power)) for power in range(-120, 120)),
    "huge": Codebook((-3e38, -1.0, 2e38, 3.4e38)).thresholds,
}
#: Thresholds with less than 1/128 between them.
CLOSE = (1.0, 1.001, 1.002)


def compared(thresholds, values):
    return sum((values >= np.float32(threshold)).astype(np.int32) for threshold in thresholds)


def edges(thresholds):
    """Ends of every bucket and their neighbours; thresholds and theirs; infinities, zeros, subnormals and NaN."""
    first = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    bits = np.concatenate([first, first + np.uint32(1), first | np.uint32(0xFFFE), first | np.uint32(0xFFFF)])
    table = np.asarray(thresholds, np.float32)
    around = np.concatenate([table, np.nextafter(table, np.float32(np.inf)), np.nextafter(table, np.float32(-np.inf))])
    drawn = DRAW.integers(0, 1 << 32, 100_000, dtype=np.uint64).astype(np.uint32)
    return np.concatenate([bits.view(np.float32), around, drawn.view(np.float32)])


@pytest.mark.filterwarnings("ignore:overflow encountered in nextafter")
@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("nan", [True, False])
def test_ranks_are_those_by_comparing(name, framework, nan):
    thresholds = TABLES[name]
    values = edges(thresholds)
    values = values if nan else values[~np.isnan(values)]
    given = torch.from_numpy(values) if framework == "torch" else values
    assert (buckets_for(thresholds, given) is None) == nan
    found = np.asarray(rank(thresholds, given))
    assert found.dtype == np.int32
    expected = compared(thresholds, values)
    if len(thresholds) > 32:  # searched for, and a search puts NaN last
        expected = np.where(np.isnan(values), len(thresholds), expected)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_views_and_shapes_are_as_they_were(framework):
    values = DRAW.standard_normal((6, 10, 4)).astype(np.float32)
    given = torch.from_numpy(values) if framework == "torch" else values
    for pick in (lambda x: x[::2, :, 1:3], lambda x: x[:, :0], lambda x: x[1, 2, 3:4]):
        np.testing.assert_array_equal(
            np.asarray(rank(NF4.thresholds, pick(given))), compared(NF4.thresholds, pick(values))
        )


def test_thresholds_that_share_a_bucket_are_compared_with():
    values = np.linspace(0.99, 1.01, 1001, dtype=np.float32)
    assert buckets_for(CLOSE, values) is None
    np.testing.assert_array_equal(rank(CLOSE, values), compared(CLOSE, values))


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_types_are_compared_with(dtype):
    values = DRAW.standard_normal(100).astype(dtype)
    assert buckets_for(NF4.thresholds, values) is None
    np.testing.assert_array_equal(rank(NF4.thresholds, values), compared(NF4.thresholds, values))
