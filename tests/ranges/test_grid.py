"""The grid that range methods search is the one that quantize rounds to."""

import numpy as np
import pytest

from fewbit.formats.scale_type import scale_fits
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

TEXTS = [
    "int4 channel",
    "int4 channel narrow",
    "int4 channel asym",
    "uint8 channel asym",
    "e4m3 channel",
    "nf4 channel",
]


def weight() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)


@pytest.mark.parametrize("scale_type", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("text", TEXTS)
def test_parameters_codes_and_values_are_those_of_quantize(text, scale_type, xp):
    scheme = parse_scheme(text).stored_as(scale_type)
    quantized = quantize(weight(), scheme)
    rows = xp.from_numpy(weight())
    scale, zero = scheme.grid.parameters(*scheme.ranging(rows, (1,), scheme.grid))
    np.testing.assert_array_equal(xp.to_numpy(scale), quantized.scale, strict=True)
    assert xp.to_numpy(scale_fits(scale, scale_type)).all()
    assert (zero is None) == (quantized.zero_point is None)
    if zero is not None:
        np.testing.assert_array_equal(xp.to_numpy(zero), quantized.zero_point.astype(np.float32), strict=True)
    np.testing.assert_array_equal(xp.to_numpy(scheme.grid.codes(rows, scale, zero)), quantized.codes, strict=True)
    rounded = xp.to_numpy(scheme.grid.rounded(rows, scale, zero))
    np.testing.assert_array_equal(rounded, quantized.dequantize(), strict=True)


@pytest.mark.parametrize("text", TEXTS)
def test_the_error_is_that_of_what_quantize_makes(text):
    scheme = parse_scheme(text).stored_as("float16")
    bounds = scheme.ranging(weight(), (1,), scheme.grid)
    made = (quantize(weight(), scheme).dequantize() - weight()).astype(np.float64)
    error = scheme.grid.error(weight(), *bounds, (1,), None)
    # 1e-6: squares and the 6 levels of the sum of 40 are rounded to float32, 6e-8 relative each.
    np.testing.assert_allclose(error[:, 0], (made**2).sum(axis=1), rtol=1e-6)
    weights = np.where(np.arange(40) < 3, np.float32(7), np.float32(0)) * np.ones((5, 1), np.float32)
    weighted = scheme.grid.error(weight(), *bounds, (1,), weights)
    np.testing.assert_allclose(weighted[:, 0], 7 * (made[:, :3] ** 2).sum(axis=1), rtol=1e-6)
