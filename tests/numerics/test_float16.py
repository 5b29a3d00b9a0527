"""float16 of compiled code is NumPy's."""

import numba
import numpy as np

from fewbit.numerics.float16 import half


@numba.njit(fastmath=True)
def halves(values, found):
    for k in range(values.shape[0]):
        found[k] = half(values[k])


def test_every_float16_and_every_tie_rounds_as_in_numpy_even_in_a_loop_with_fast_arithmetic():
    exact = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (exact[1:] + exact[:-1]) / 2
    ends = np.float32(np.inf) * np.asarray([[-1], [1]], np.float32)
    beside = np.nextafter(middle, ends).ravel()
    values = np.concatenate([exact, middle, beside])
    values = np.concatenate([values, -values])
    found = np.empty_like(values)
    halves(values, found)
    np.testing.assert_array_equal(found, values.astype(np.float16).astype(np.float32))


def test_beyond_the_largest_float16_steps_stay_those_of_a_significand_of_11_bits():
    assert half(np.float32(70000.0)) == 70016.0
    assert half(np.float32(-1e9)) == np.float32(-(2.0**19) * np.round(1e9 / 2.0**19))
