"""Statistics of the parts of a calibration come to the same bits, whoever has summed which part."""

import numpy as np
import pytest

from fewbit.statistics.mean_square import MeanSquare
from fewbit.statistics.moving_average import MovingAverage
from fewbit.statistics.partials import Partials, Parts, merged
from fewbit.statistics.second_moment import SecondMoment

BATCHES = list(np.random.default_rng(0).normal(size=(13, 7, 24)).astype(np.float32))


def gathered(kind, parts, batches):
    own = Partials(parts)
    for number, batch in enumerate(batches):
        own.of(number, lambda: kind.init(24, BATCHES[0])).update(batch)
    return own


@pytest.mark.parametrize("workers", [[0], [0, 4], [0, 8], [0, 4, 8, 12]])
@pytest.mark.parametrize("kind", [SecondMoment, MeanSquare, MovingAverage])
def test_parts_of_several_workers_merge_to_the_bits_of_one(kind, workers):
    alone = gathered(kind, Parts(4), BATCHES).whole()
    parts = []
    for start, stop in zip(workers, [*workers[1:], len(BATCHES)], strict=True):
        held = gathered(kind, Parts(4, apart=True, first=start), BATCHES[start:stop]).whole()
        assert list(held.kept) == list(range(start // 4, -(-stop // 4)))
        parts += held.kept.values()
    assert len(parts) == 4
    np.testing.assert_array_equal(merged(parts).result(), alone.result())


def test_another_size_of_parts_gives_other_bits():
    # What the tests of workers compare would not show a cut at another place if it did not.
    found = [gathered(SecondMoment, Parts(size), BATCHES).whole().result() for size in (1, 4, 13)]
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[1], found[2])
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5, atol=1e-6)  # sums of 91 float32 in another order


def test_one_part_is_what_a_statistic_without_parts_sees():
    plain = SecondMoment.init(24, BATCHES[0])
    for batch in BATCHES[:8]:
        plain.update(batch)
    np.testing.assert_array_equal(gathered(SecondMoment, Parts(8), BATCHES[:8]).whole().result(), plain.result())


def test_no_more_than_two_sums_are_in_memory():
    own = Partials(Parts(2))
    for number, batch in enumerate(BATCHES):
        own.of(number, lambda: SecondMoment.init(24, BATCHES[0])).update(batch)
        assert len(own.kept) <= 2


def test_batches_that_a_layer_is_not_called_for_leave_parts_out():
    own = Partials(Parts(2))
    for number in (1, 7, 8):
        own.of(number, lambda: SecondMoment.init(24, BATCHES[0])).update(BATCHES[number])
    assert own.whole().count == 3 * 7
