"""What a BatchNorm tells: moments of clipped normal numbers beside scipy's integrals and beside samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from fewbit.known_output import KnownOutput, joined, regrouped
from fewbit.transforms.batchnorm import BatchNorm

INF = float("inf")
CUTS = {"relu": (0.0, INF), "relu6": (0.0, 6.0), "hardtanh": (-1.0, 1.0), "nothing": (-INF, INF)}


def known(mean, deviation):
    return KnownOutput(np.asarray([mean], np.float64), np.asarray([deviation], np.float64) ** 2)


def integrated(mean, deviation, low, high):
    """Return mean and variance by scipy: what lies beyond a bound is at it."""
    own = norm(mean, deviation)
    below, above = (own.cdf(low) if low > -INF else 0.0), (own.sf(high) if high < INF else 0.0)
    moments = []
    for power in (1, 2):
        inside = own.expect(lambda y, power=power: y**power, lb=max(low, mean - 12 * deviation),
                            ub=min(high, mean + 12 * deviation))  # fmt: skip
        ends = (low**power * below if below else 0.0) + (high**power * above if above else 0.0)
        moments.append(inside + ends)
    return moments[0], moments[1] - moments[0] ** 2


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-1.3, 0.7), (2.5, 0.4), (5.5, 2.0), (0.2, 0.05)])
def test_clipped_moments_are_those_that_scipy_integrates(cut, mean, deviation):
    low, high = CUTS[cut]
    found = known(mean, deviation).clipped(low, high)
    expected = integrated(mean, deviation, low, high)
    # The quadrature's own tolerance.
    assert (found.mean[0], found.variance[0]) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("cut", CUTS)
def test_clipped_moments_are_those_of_samples(cut):
    rows = np.random.default_rng(0).normal([-1.0, 0.3, 3.0, 7.0], [1.0, 2.0, 0.5, 2.0], (400_000, 4))
    clipped = np.clip(rows, *CUTS[cut])
    found = KnownOutput(np.asarray([-1.0, 0.3, 3.0, 7.0]), np.asarray([1.0, 2.0, 0.5, 2.0]) ** 2).clipped(*CUTS[cut])
    # Five standard errors of the mean; a mean square of 400,000 draws is known to 1 %.
    assert np.all(np.abs(found.mean - clipped.mean(0)) < 5 * rows.std(0) / 400_000**0.5)
    np.testing.assert_allclose(found.variance, clipped.var(0), rtol=0.01, atol=1e-3)


@given(st.floats(-1e6, 1e6), st.floats(0.0, 1e6), st.sampled_from(sorted(CUTS)))
def test_moments_stay_within_the_bounds_whatever_the_numbers(mean, deviation, cut):
    low, high = CUTS[cut]
    found = known(mean, deviation).clipped(low, high)
    assert low <= found.mean[0] <= high
    assert 0.0 <= found.variance[0] <= deviation**2 * (1 + 1e-9)


def test_sums_scales_and_shifts():
    one, other = known(1.0, 2.0), known(-3.0, 1.0)
    assert (one.added(other).mean[0], one.added(other).variance[0]) == (-2.0, 5.0)
    moved = one.divided(np.asarray([4.0])).less(np.asarray([0.5]))
    assert (moved.mean[0], moved.variance[0]) == (-0.25, 0.25)
    assert one.averaged().clipped() is None  # how far averages spread is not known
    assert one.added(other.averaged()).variance is None
    assert joined([one, other]).mean.tolist() == [1.0, -3.0]
    assert one.repeated(2).width == 2


def test_almost_every_number_is_above_what_is_certain():
    rows = np.random.default_rng(0).normal(9.0, 2.0, 100_000)
    certain = known(9.0, 2.0).certain(3.0)[0]
    assert certain == 3.0
    assert (rows < certain).mean() < 0.002
    assert known(1.0, 2.0).certain(3.0)[0] == 0.0


def test_a_norm_puts_out_what_it_says_of_inputs_with_its_mean_and_variance():
    rows = np.random.default_rng(0).normal(4.0, 3.0, 100_000)
    made = BatchNorm(
        mean=np.asarray([4.0]),
        variance=np.asarray([9.0]),
        gain=np.asarray([-0.5]),
        shift=np.asarray([0.25]),
        epsilon=1.0,
    ).output()
    outputs = (rows - 4.0) / np.sqrt(9.0 + 1.0) * -0.5 + 0.25
    # Five standard errors.
    assert made.mean[0] == pytest.approx(outputs.mean(), abs=0.01)
    assert made.variance[0] == pytest.approx(outputs.var(), rel=0.03)


@pytest.mark.parametrize(
    ("shape", "axis", "other", "place"),
    [
        ((2, 8, 3, 3), 1, (2, 72), (1, 9)),
        ((2, 8, 1, 1), 1, (2, 8), (1, 1)),
        ((2, 8), 1, (2, 8, 1, 1), (1, 1)),
        ((2, 8, 3, 3), 1, (2, 8, 9), (1, 1)),
        ((2, 8, 3, 3), 1, (2, 2, 4, 9), None),
        ((2, 8, 3, 3), 1, (16, 9), None),
    ],
)
def test_channels_are_found_in_another_shape(shape, axis, other, place):
    assert regrouped(shape, axis, other) == place
