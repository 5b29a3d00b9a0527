"""The drift of inputs is the mean product of difference and row, however the rows are cut up."""

import numpy as np
import pytest

from fewbit.errors import NonFiniteError
from fewbit.statistics.input_drift import InputDrift, RelativeInputDrift

#: Float32 sums of a few hundred products, as a share of the largest entry.
SUMS = 1e-5


def rows(seed):
    return np.random.default_rng(seed).normal(size=(7, 30, 12)).astype(np.float32)


def expected(given, floats, *, relative):
    x, own = floats.reshape(-1, 12).astype(np.float64), given.reshape(-1, 12).astype(np.float64)
    weights = 1 / (own**2).mean(1, keepdims=True) if relative else np.ones((len(own), 1))
    return (x - own).T @ (own * weights) / len(own)


@pytest.mark.parametrize(("kind", "relative"), [(InputDrift, False), (RelativeInputDrift, True)])
def test_it_is_the_mean_product_in_every_framework_and_cut(kind, relative, xp):
    given, floats = rows(0), rows(1)
    whole, cut, other = (kind.init(12, xp.from_numpy(given)) for _ in range(3))
    whole.update(xp.from_numpy(given), xp.from_numpy(floats))
    cut.update(xp.from_numpy(given[:3]), xp.from_numpy(floats[:3]))
    other.update(xp.from_numpy(given[3:]), xp.from_numpy(floats[3:]))
    cut.merge(other)
    correct = expected(given, floats, relative=relative)
    for found in (whole, cut):
        assert found.count == 210
        np.testing.assert_allclose(xp.to_numpy(found.result()), correct, rtol=0, atol=SUMS * np.abs(correct).max())
    assert not np.allclose(correct, correct.T, atol=0.01)  # which side is which matters


@pytest.mark.parametrize("kind", [InputDrift, RelativeInputDrift])
def test_rows_of_zeros_and_no_rows_add_nothing(kind):
    found = kind.init(12, rows(0))
    assert not found.result().any()
    found.update(np.zeros((5, 12), np.float32), rows(0)[0, :5])
    assert not found.result().any()


def test_rows_that_are_not_finite_are_refused():
    found = InputDrift.init(12, rows(0))
    with np.errstate(invalid="ignore"):
        found.update(rows(0), np.where(rows(1) > 2, np.inf, rows(1)).astype(np.float32))
    with pytest.raises(NonFiniteError, match="its inputs hold NaN or infinity"):
        found.result()
