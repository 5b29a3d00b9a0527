"""The few operations whose spelling differs between frameworks."""

import ml_dtypes
import numpy as np
import pytest
import torch
from array_api_compat import array_namespace, device

from fewbit.numerics.namespace import SMALLEST_NORMAL, constants_like, to_float32, to_numpy

TINY = np.float32(SMALLEST_NORMAL)
BELOW = np.nextafter(TINY, np.float32(0))


def test_smallest_normal_is_that_of_float32():
    assert np.finfo(np.float32).smallest_normal == SMALLEST_NORMAL


def test_only_magnitudes_below_the_smallest_normal_become_zero(xp):
    values = np.array([TINY, -TINY, BELOW, -BELOW, 1e-45, 0.0, 3.0, -1e38], np.float32)
    flushed = xp.to_numpy(to_float32(xp.from_numpy(values)))
    assert flushed.dtype == np.float32
    assert flushed.tolist() == [TINY, -TINY, 0.0, 0.0, 0.0, 0.0, 3.0, np.float32(-1e38)]


def test_the_input_is_left_alone(xp):
    values = xp.from_numpy(np.array([BELOW, 1.0]))
    to_float32(values)
    assert xp.to_numpy(values).tolist() == [BELOW, 1.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16], ids=lambda dtype: dtype.__name__)
def test_other_floats_of_numpy_become_float32(dtype):
    values = np.array([0.5, -3.0, 2.0**-20], dtype)
    np.testing.assert_array_equal(to_float32(values), np.array([0.5, -3.0, 2.0**-20], np.float32), strict=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16], ids=str)
def test_other_floats_of_torch_become_float32(dtype):
    converted = to_float32(torch.tensor([0.5, -3.0, 2.0**-20], dtype=dtype))
    assert converted.dtype == torch.float32
    assert converted.tolist() == [0.5, -3.0, 2.0**-20]


@pytest.mark.parametrize(("dtype", "values"), [("float32", [0.5, -1.5]), ("int32", [1, 2, 300])])
def test_constants_are_of_the_framework_and_device_of_the_other_array(dtype, values, xp):
    other = xp.from_numpy(np.zeros(3, np.int8))
    table = constants_like(values, dtype, other)
    assert array_namespace(table) is array_namespace(other)
    assert device(table) == device(other)
    assert xp.to_numpy(table).dtype == dtype
    assert xp.to_numpy(table).tolist() == values


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8])
def test_to_numpy_gives_the_values_of_torch_and_numpy(dtype):
    values = np.array([[1, 2], [3, 4]], dtype)
    np.testing.assert_array_equal(to_numpy(values), values, strict=True)
    np.testing.assert_array_equal(to_numpy(torch.from_numpy(values.copy())), values, strict=True)


def test_to_numpy_detaches_a_parameter():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    assert to_numpy(parameter).tolist() == [1.0, 2.0]


def test_to_numpy_of_numpy_copies_nothing():
    values = np.zeros(3)
    assert np.shares_memory(to_numpy(values), values)
