"""Arrays that are put away come back as they were, from memory or from the file."""

import numpy as np

from fewbit.samples.carried import Carried


def test_arrays_that_do_not_fit_into_memory_come_back_from_the_file():
    random = np.random.default_rng(0)
    kept = Carried(in_memory=1000)
    arrays = {(batch, name): random.normal(size=(3, batch + 1)) for batch in range(8) for name in "ab"}
    for (batch, name), array in arrays.items():
        kept.put(batch, name, array)
    kept.drop(6, ["a"])
    kept.put(6, "a", -arrays[6, "a"])  # takes the room that is free now
    kept.put(0, "bool", np.asarray(True))
    kept.put(0, "empty", np.zeros((0, 3), np.float32))
    assert kept.get(0, "bool") == np.asarray(True)
    assert kept.get(0, "empty").shape == (0, 3)
    for (batch, name), array in arrays.items():
        sign = -1 if (batch, name) == (6, "a") else 1
        assert np.array_equal(kept.get(batch, name), sign * array)
    kept.close()
