"""The histogram of an input: exact counts whatever the cut, and room for any magnitude."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewbit.errors import NonFiniteError
from fewbit.statistics.histogram import BINADES, PER_BINADE, Histogram
from fewbit.statistics.moving_average import MovingAverage

NUMBERS = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**90), 2.0**90, width=32))


def seen(*batches):
    histogram = Histogram.init(1, batches[0])
    for batch in batches:
        histogram.update(batch)
    return histogram


@given(values=NUMBERS, cut=st.integers(1, 59))
def test_any_cut_of_the_same_numbers_gives_the_same_counts(values, cut):
    whole, cut_up = seen(values), seen(values[:cut], values[cut:])
    merged = seen(values[:cut])
    merged.merge(seen(values[cut:]))
    for other in (cut_up, merged, seen(torch.from_numpy(values))):
        for one, two in zip(whole.result(), other.result(), strict=True):
            assert np.array_equal(one, two)
        assert (whole.low, whole.high, whole.count) == (other.low, other.high, other.count)
    assert whole.result()[1].sum() == whole.count == len(values)
    assert (whole.low, whole.high) == (values.min(), values.max())


@given(values=NUMBERS)
def test_each_number_is_known_to_a_2048th_or_counts_as_zero(values):
    middles, counts = seen(values).result()
    found = np.repeat(middles, counts)
    expected = np.sort(values)
    zero = np.abs(expected) < 2.0 ** (np.frexp(np.abs(values).max())[1] - BINADES)
    expected[zero] = 0.0
    assert np.all(np.abs(found - np.sort(expected)) <= np.abs(np.sort(expected)) / 2048)
    assert np.array_equal(found == 0.0, np.sort(expected) == 0.0)


def test_memory_does_not_grow():
    histogram = seen(np.float32([0.001]), np.float32([1e30, 5.0]), np.float32([1e-9]), np.float32([3.4e38]))
    assert histogram.counts.nbytes == 2 * BINADES * PER_BINADE * 8
    assert (histogram.zeros, histogram.count) == (4, 5)


@pytest.mark.parametrize("statistic", [Histogram, MovingAverage])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(statistic, wrong):
    own = statistic.init(2, np.zeros(1, np.float32))
    with pytest.raises(NonFiniteError, match="its inputs hold NaN or infinity; look upstream"):
        own.update(np.float32([[1.0, wrong]]))


@pytest.mark.parametrize("statistic", [Histogram, MovingAverage])
def test_a_batch_of_nothing_changes_nothing(statistic):
    own = statistic.init(2, np.zeros(1, np.float32))
    own.update(np.zeros((0, 2), np.float32))
    assert own.count == 0


def test_a_moving_average_begins_with_the_first_batch_and_forgets():
    own = MovingAverage.init(1, np.zeros(1))
    own.update(np.float32([-1.0, 3.0]))
    assert own.result() == (-1.0, 3.0)
    for _ in range(100):
        own.update(np.float32([-2.0, 1.0]))
    assert own.result() == pytest.approx((-2.0, 1.0), abs=1e-4)  # 0.9 ** 100 of the first is left
    assert own.count == 101
