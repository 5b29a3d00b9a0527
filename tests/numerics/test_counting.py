"""Counting whole numbers gives the same counts in every framework."""

import array_api_strict
import jax.numpy
import numpy as np
import pytest
import torch

from fewbit.numerics.counting import occurrences

FRAMEWORKS = {
    "numpy": np.asarray, "torch": torch.from_numpy, "jax": jax.numpy.asarray, "strict": array_api_strict.asarray,
}  # fmt: skip


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_each_number_is_counted_also_those_that_do_not_occur(framework, count):
    numbers = np.random.default_rng(0).integers(0, 50, count).astype(np.int32)
    found = np.from_dlpack(occurrences(FRAMEWORKS[framework](numbers), 60))
    assert found.tolist() == [(numbers == number).sum() for number in range(60)]
    assert found.dtype == np.int32
