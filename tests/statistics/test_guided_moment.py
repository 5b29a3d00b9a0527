"""Guided second moments: rows count half by the loss's gradient, half alike."""

import numpy as np
import pytest
import torch

from fewbit.errors import NonFiniteError
from fewbit.statistics.guided_moment import GuidedSecondMoment
from fewbit.statistics.second_moment import RelativeSecondMoment

#: Float32 sums of a few hundred products, as a share of the largest entry.
SUMS = 1e-5


def rows(seed):
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(5, 40, 12)) * np.exp(draw.normal(size=(5, 40, 1)))).astype(np.float32)


def weights(seed):
    found = np.random.default_rng(seed).lognormal(size=200).astype(np.float32)
    return found / found.mean()


def expected(given, counts):
    x = given.reshape(-1, 12).astype(np.float64)
    own = np.sqrt(counts.astype(np.float64) / (x**2).mean(1))[:, None]
    return (x * own).T @ x / len(x)


def test_it_is_the_weighted_mean_in_every_framework_and_cut(xp):
    given, counts = rows(0), weights(1)
    whole, cut, other = (GuidedSecondMoment.init(12, xp.from_numpy(given)) for _ in range(3))
    whole.update(xp.from_numpy(given), xp.from_numpy(counts))
    cut.update(xp.from_numpy(given[:3]), xp.from_numpy(counts[:120]))
    other.update(xp.from_numpy(given[3:]), xp.from_numpy(counts[120:]))
    cut.merge(other)
    correct = expected(given, counts)
    for found in (whole, cut):
        assert found.guided
        assert found.count == 200
        np.testing.assert_allclose(xp.to_numpy(found.result()), correct, rtol=0, atol=SUMS * np.abs(correct).max())
    # Rows that count alike are something else.
    assert not np.allclose(correct, expected(given, 1 / (given.reshape(-1, 12) ** 2).mean(1)), rtol=0.1)


def test_without_weights_it_is_the_relative_moment():
    given = rows(0)
    found, plain = GuidedSecondMoment.init(12, given), RelativeSecondMoment.init(12, given)
    found.update(given)
    plain.update(given)
    assert np.array_equal(found.result(), plain.result())
    assert not found.guided
    other = GuidedSecondMoment.init(12, given)
    other.update(given, weights(1))
    found.merge(other)
    assert found.guided


def test_rows_without_weight_and_rows_of_zeros_add_nothing():
    given, counts = rows(0), weights(1)
    given[2], counts[:40] = 0.0, 0.0
    found = GuidedSecondMoment.init(12, given)
    found.update(given, counts)
    kept = np.r_[40:80, 120:200]
    other = GuidedSecondMoment.init(12, given)
    other.update(given.reshape(-1, 12)[kept], counts[kept])
    correct = other.result() * len(kept) / 200
    np.testing.assert_allclose(found.result(), correct, rtol=0, atol=SUMS * np.abs(correct).max())


def test_what_is_not_finite_is_refused():
    given = rows(0)
    given[1, 2, 3] = np.inf
    found = GuidedSecondMoment.init(12, torch.from_numpy(given))  # NumPy warns besides
    found.update(torch.from_numpy(given), torch.from_numpy(weights(1)))
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        found.result()
