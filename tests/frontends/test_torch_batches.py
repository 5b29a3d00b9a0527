"""NumPy arrays as tensors of a module; what is no array of NumPy stays the very same object."""

import numpy as np
import torch
from torch import nn

from fewbit.frontends.torch.batches import adopted

HALF = nn.Linear(2, 2).to(torch.bfloat16)


def test_floats_take_the_type_of_the_parameters_and_whole_numbers_keep_theirs():
    for batch in (np.ones(2, np.float32), np.ones(2)):
        assert adopted(HALF, batch).dtype == torch.bfloat16
    assert adopted(HALF, np.ones(2, np.int32)).dtype == torch.int32
    assert adopted(HALF, np.ones(2, bool)).dtype == torch.bool
    assert adopted(nn.ReLU(), np.ones(2)).dtype == torch.float64  # no parameters, nothing to fit


def test_dicts_and_tuples_keep_their_form_and_what_else_is_in_them():
    tensor = torch.zeros(3)
    named = adopted(HALF, {"x": np.ones(2), "mask": None, "t": tensor})
    assert (named["x"].dtype, named["mask"], named["t"] is tensor) == (torch.bfloat16, None, True)
    first, second = adopted(HALF, (np.arange(2), tensor))
    assert (first.tolist(), second is tensor) == ([0, 1], True)
    for batch in (tensor, {"t": tensor}, (tensor,), [np.ones(2)], "text"):
        assert adopted(HALF, batch) is batch


def test_a_module_that_writes_into_its_input_does_not_change_the_array():
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    tensor = adopted(nn.Linear(3, 3), array)
    tensor.add_(1)
    assert tensor.tolist() == [1, 1, 1]
    assert array.tolist() == [0, 0, 0]
