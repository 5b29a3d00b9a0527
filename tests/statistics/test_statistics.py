"""Statistics of a layer's input: any cut of the rows, any split that is merged, against float64 and exact oracles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbit.errors import NonFiniteError
from fewbit.statistics import STATISTICS
from fewbit.statistics.channel_magnitude import ChannelMagnitude
from fewbit.statistics.extremes import Extremes
from fewbit.statistics.row_sample import KEPT, RowSample
from fewbit.statistics.second_moment import RelativeSecondMoment, SecondMoment

#: Errors of float32 sums, as a share of sqrt(H_ii H_jj), which bounds |H_ij|: some roundings of 6e-8 each.
SUMS = 1e-6
ROWS = np.random.default_rng(0).normal(size=(600, 24)).astype(np.float32) * np.logspace(-2, 2, 24, dtype=np.float32)


def moment_of(rows):
    rows = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
    return rows.T @ rows / len(rows)


def assert_moment(found, rows):
    expected = moment_of(rows)
    size = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    assert found.dtype == np.float32
    assert (np.abs(found - expected) <= SUMS * size).all()
    np.testing.assert_array_equal(found, found.T)


def gathered(kind, parts):
    statistic = kind.init(parts[0].shape[-1], parts[0])
    for part in parts:
        statistic.update(part)
    return statistic


@pytest.mark.parametrize("width", [1, 24, 255, 256, 257, 600])
def test_the_second_moment_is_that_of_float64_for_panels_of_any_number(width):
    rows = np.random.default_rng(width).normal(size=(700, width)).astype(np.float32)
    statistic = gathered(SecondMoment, [rows[:300], rows[300:301], rows[301:]])
    assert statistic.count == 700
    assert_moment(statistic.result(), rows)


def test_second_moments_in_every_framework(xp):
    statistic = gathered(SecondMoment, [xp.from_numpy(ROWS[:100]), xp.from_numpy(ROWS[100:])])
    other = gathered(SecondMoment, [xp.from_numpy(ROWS[:50])])
    statistic.merge(other)
    assert_moment(xp.to_numpy(statistic.result()), np.concatenate([ROWS, ROWS[:50]]))
    assert statistic.count == 650


def test_extremes_in_every_framework(xp):
    statistic = gathered(Extremes, [xp.from_numpy(ROWS[:100]), xp.from_numpy(ROWS[100:])])
    low, high = (xp.to_numpy(bound) for bound in statistic.result())
    np.testing.assert_array_equal(low, ROWS.min(axis=0), strict=True)
    np.testing.assert_array_equal(high, ROWS.max(axis=0), strict=True)


CUTS = st.lists(st.integers(0, 600), max_size=6).map(sorted)


@given(CUTS)
def test_any_cut_of_the_rows_gives_the_same(cuts):
    parts = np.split(ROWS, cuts)
    statistic = gathered(SecondMoment, parts)
    assert statistic.count == 600
    assert_moment(statistic.result(), ROWS)
    low, high = gathered(Extremes, parts).result()
    np.testing.assert_array_equal([low, high], [ROWS.min(axis=0), ROWS.max(axis=0)])


@given(CUTS, st.randoms(use_true_random=False))
def test_any_split_can_be_merged_in_any_order(cuts, random):
    parts = np.split(ROWS, cuts)
    random.shuffle(parts)
    moments = [gathered(SecondMoment, [part]) for part in parts]
    extremes = [gathered(Extremes, [part]) for part in parts]
    for whole, rest in ((moments[0], moments[1:]), (extremes[0], extremes[1:])):
        for other in rest:
            whole.merge(other)
        assert whole.count == 600
    assert_moment(moments[0].result(), ROWS)
    np.testing.assert_array_equal(extremes[0].result(), [ROWS.min(axis=0), ROWS.max(axis=0)])


def test_leading_axes_are_rows():
    statistic = gathered(SecondMoment, [ROWS.reshape(3, 200, 24), ROWS[0]])
    assert statistic.count == 601
    assert_moment(statistic.result(), np.concatenate([ROWS, ROWS[:1]]))


def test_half_precision_rows_are_summed_in_float32():
    rows = np.full((5000, 2), 3.0, np.float16)  # the sum is 45000 and more than float16 counts in steps of 9
    assert gathered(SecondMoment, [rows]).result().tolist() == [[9.0, 9.0], [9.0, 9.0]]


def test_merging_leaves_the_other_as_it_was():
    one, other = gathered(SecondMoment, [ROWS[:10]]), gathered(SecondMoment, [ROWS[10:20]])
    before = other.result()
    one.merge(other)
    one.update(ROWS[20:30])
    np.testing.assert_array_equal(other.result(), before)


def test_no_rows_give_zeros_and_open_bounds():
    statistic = SecondMoment.init(3, ROWS)
    statistic.update(ROWS[:0, :3])
    assert (statistic.count, statistic.result().tolist()) == (0, np.zeros((3, 3)).tolist())
    bounds = Extremes.init(2, ROWS)
    bounds.update(ROWS[:0, :2])
    assert [bound.tolist() for bound in bounds.result()] == [[np.inf, np.inf], [-np.inf, -np.inf]]


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_the_relative_second_moment_is_that_of_rows_of_mean_square_1(xp, size):
    rows = ROWS * np.geomspace(1e-3, 1e3, len(ROWS), dtype=np.float32)[:, None] * np.float32(size)
    rows[3] = 0.0
    found = gathered(RelativeSecondMoment, [xp.from_numpy(rows[:50]), xp.from_numpy(rows[50:])])
    scaled = rows.astype(np.float64) / size
    power = (scaled**2).mean(axis=1, keepdims=True)
    assert_moment(xp.to_numpy(found.result()), scaled / np.sqrt(np.where(power > 0, power, 1)))
    assert found.count == len(rows)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_the_relative_second_moment_refuses_what_is_not_finite(bad):
    rows = ROWS.copy()
    rows[5, 2] = bad
    with np.errstate(invalid="ignore", over="ignore"):
        statistic = gathered(RelativeSecondMoment, [rows])
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        statistic.result()


def test_what_is_derived_is_made_once_until_more_rows_come(xp):
    statistic, made = gathered(SecondMoment, [xp.from_numpy(ROWS)]), []

    def trace(moment):
        made.append(float(np.trace(xp.to_numpy(moment))))
        return made[-1]

    assert statistic.derive("trace", trace) == statistic.derive("trace", trace)
    assert statistic.result() is statistic.result()
    assert len(made) == 1
    statistic.derive("another", trace)
    assert len(made) == 2
    statistic.update(xp.from_numpy(ROWS * 2))
    assert statistic.derive("trace", trace) == pytest.approx(made[0] * 2.5)  # the mean of 1 and of 2^2
    statistic.merge(gathered(SecondMoment, [xp.from_numpy(ROWS * 2)]))
    assert statistic.derive("trace", trace) == pytest.approx(made[0] * 3.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("place", [0, 23])
def test_what_is_not_finite_or_overflows_is_refused(bad, place):
    rows = ROWS.copy()
    rows[17, place] = bad
    with np.errstate(all="ignore"):  # NumPy warns of what is raised below
        statistic = gathered(SecondMoment, [rows, ROWS])
        with pytest.raises(NonFiniteError, match="NaN or infinity, or numbers whose square overflows"):
            statistic.result()


def test_the_catalogue_knows_all():
    assert set(STATISTICS) == {
        "second_moment", "relative_second_moment", "guided_second_moment", "input_drift", "relative_input_drift",
        "mean", "mean_square", "extremes", "histogram", "moving_average", "channel_magnitude", "row_sample",
    }  # fmt: skip


def test_channel_magnitudes_in_every_framework(xp):
    statistic = gathered(ChannelMagnitude, [xp.from_numpy(ROWS[:100]), xp.from_numpy(ROWS[100:])])
    other = gathered(ChannelMagnitude, [xp.from_numpy(2 * ROWS[:50])])
    statistic.merge(other)
    seen = np.abs(np.concatenate([ROWS, 2 * ROWS[:50]]).astype(np.float64))
    largest, mean = statistic.result()
    np.testing.assert_array_equal(largest, seen.max(axis=0))
    np.testing.assert_allclose(mean, seen.mean(axis=0), rtol=SUMS)
    statistic.update(xp.from_numpy(np.full((1, 24), np.inf, dtype=np.float32)))
    with pytest.raises(NonFiniteError):
        statistic.result()


def test_a_sample_of_rows_is_the_same_for_any_cut_and_merge_in_every_framework(xp):
    rows = np.random.default_rng(5).normal(size=(1500, 24)).astype(np.float32)
    whole = gathered(RowSample, [xp.from_numpy(rows)])
    parts = gathered(RowSample, [xp.from_numpy(rows[900:]), xp.from_numpy(rows[:0]), xp.from_numpy(rows[:7])])
    parts.merge(gathered(RowSample, [xp.from_numpy(rows[7:900])]))
    kept = xp.to_numpy(whole.result())
    assert kept.shape == (KEPT, 24)
    assert whole.count == parts.count == 1500
    np.testing.assert_array_equal(xp.to_numpy(parts.result()), kept)
    taken = {row.tobytes() for row in rows}
    assert len({row.tobytes() for row in kept} & taken) == KEPT
    # No part of the data is preferred: of 1500 rows in three parts 171 each, give or take four standard deviations.
    places = np.sort([int(np.flatnonzero((rows == row).all(axis=1))[0]) for row in kept])
    assert all(abs(count - 171) < 36 for count in np.histogram(places, bins=3, range=(0, 1500))[0])


def test_few_rows_are_all_in_the_sample():
    sample = gathered(RowSample, [ROWS[:30], ROWS[30:40]])
    assert {row.tobytes() for row in sample.result()} == {row.tobytes() for row in ROWS[:40]}
