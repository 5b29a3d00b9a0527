"""The same values under another scheme, to the bit, or a refusal that says what it lacks."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fewbit as fb
from fewbit.checkpoints.gguf.blocks import pack, unpack
from fewbit.checkpoints.restated import restated
from fewbit.errors import CheckpointError
from fewbit.qtensor import quantize, scale_shape
from fewbit.schemes.gguf import as_blocks, kind_of

MOVES = ["int4 g2 asym", "int4 channel asym", "int8 tensor", "int4 g4", "uint4 g4 asym", "int3 g4 asym", "int8 g4"]


@settings(max_examples=60)
@given(source=st.sampled_from(MOVES), to=st.sampled_from(MOVES), seed=st.integers(0, 1000))
def test_restated_values_are_equal_to_the_bit_or_refused(source, to, seed):
    values = np.random.default_rng(seed).standard_normal((4, 16)).astype(np.float32)
    given, scheme = quantize(values, fb.parse_scheme(source)), fb.parse_scheme(to)
    try:
        found = restated(given, scheme)
    except CheckpointError as error:
        refusal = str(error)
    else:
        refusal = ""
    # Refused are coarser groups, fewer levels, and zero points where there is no place for them.
    if refusal:
        assert re.search("differ inside the groups|holds -?[0-9]+ to -?[0-9]+, and there are", refusal)
        return
    assert found.scheme == scheme
    assert found.scale.shape == scale_shape((4, 16), scheme)
    assert np.array_equal(found.dequantize(), given.dequantize())


# GGUF: blocks of 32 with a scale, and a minimum where there is a zero point.


def rounded_to(scale, bits):
    """Scales with so few bits that their products with zero points are float16 numbers."""
    mantissa, exponent = np.frexp(scale)
    return np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent).astype(np.float32)


@pytest.mark.parametrize(("text", "bits"), [("int4 g64 asym", 7), ("int5 g32 asym", 6), ("int4 channel asym", 7)])
def test_zero_points_become_minimums_of_the_same_values(text, bits):
    weight = np.random.default_rng(0).normal(size=(8, 128)).astype(np.float32)
    scheme = replace(fb.parse_scheme(text), scale_type="float16")
    own = quantize(weight, scheme)
    own = replace(own, scale=rounded_to(own.scale, bits))
    moved = restated(own, as_blocks(scheme))
    assert moved.zero_point is None
    assert moved.minimum.shape == (8, 4)
    np.testing.assert_array_equal(moved.dequantize(), own.dequantize())
    np.testing.assert_array_equal(unpack(pack(moved, kind_of(moved.scheme)), kind_of(moved.scheme)).dequantize(),
                                  own.dequantize())  # fmt: skip


def test_a_minimum_that_float16_does_not_hold_is_refused():
    own = quantize(np.random.default_rng(0).normal(size=(8, 128)).astype(np.float32), fb.parse_scheme("int4 g64 asym"))
    scale = own.scale.astype(np.float16).astype(np.float32)
    own = replace(own, scale=scale)
    minimums = -(own.zero_point.astype(np.float32) + 8) * scale
    off = 2 * int((minimums != minimums.astype(np.float16)).sum())  # each group is two blocks
    assert off
    with pytest.raises(CheckpointError, match=f"float16 does not hold {off} of 32 minimums exactly"):
        restated(own, as_blocks(own.scheme))
