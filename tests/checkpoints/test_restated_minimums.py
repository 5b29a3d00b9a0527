"""Minimums of blocks become zero points where they are whole multiples of their scales, one weight at a time."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fewbit as fb
from fewbit.checkpoints.gguf.blocks import pack, unpack
from fewbit.checkpoints.restated import restated
from fewbit.errors import CheckpointError
from fewbit.qtensor import quantize
from fewbit.schemes.gguf import as_blocks, as_integers, kind_of


def blocks_of(weight, text, bits):
    """Return a weight with a minimum whose scales have so few bits that float16 holds the minimums."""
    scheme = replace(fb.parse_scheme(text), scale_type="float16")
    own = quantize(weight, scheme)
    mantissa, exponent = np.frexp(own.scale)
    own = replace(own, scale=np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent).astype(np.float32))
    return own, restated(own, as_blocks(scheme))


@settings(max_examples=40)
@given(bits=st.sampled_from([4, 5]), seed=st.integers(0, 999), shift=st.floats(-1.5, 1.5))
def test_minimums_of_zero_points_become_these_again(bits, seed, shift):
    weight = (np.random.default_rng(seed).standard_normal((4, 64)) + shift).astype(np.float32)
    weight[0, :32] = 0.0
    zero_points, minimums = blocks_of(weight, f"int{bits} g32 asym", 6)
    stored = unpack(pack(minimums, kind_of(minimums.scheme)), kind_of(minimums.scheme))
    again = restated(stored, replace(as_integers(stored.scheme), scale_type="float16"))
    assert again.scheme.symmetric is False
    assert np.array_equal(again.codes, zero_points.codes)
    assert np.array_equal(again.dequantize().view(np.uint32), stored.dequantize().view(np.uint32))


@pytest.mark.parametrize(("change", "message"), [
    (lambda minimum: np.nextafter(minimum, np.float32(np.inf)), "minimums of q4_1 are no whole multiples of their sc"),
    (lambda minimum: minimum + np.float32(1024.0), "minimums of q4_1 are no whole multiples of their scales"),
])  # fmt: skip
def test_other_minimums_are_refused(change, message):
    _, own = blocks_of(np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32), "int4 g32 asym", 6)
    other = replace(own, minimum=change(own.minimum))
    with pytest.raises(CheckpointError, match=message):
        restated(other, as_integers(own.scheme))


def test_a_zero_point_beyond_the_codes_is_refused():
    _, own = blocks_of(np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32), "int4 g32 asym", 6)
    other = replace(own, minimum=own.scale * np.float32(3.0))  # all of a block above 0
    with pytest.raises(CheckpointError, match=r"zero points of int4 holds -8 to 7, and there are -11 to -11"):
        restated(other, as_integers(own.scheme))
    other = replace(own, minimum=own.scale * np.float32(-20.0))  # all of it below
    with pytest.raises(CheckpointError, match=r"zero points of int4 holds -8 to 7, and there are 12 to 12"):
        restated(other, as_integers(own.scheme))
    assert np.array_equal(restated(other, fb.parse_scheme("int8 g32 asym")).dequantize(), other.dequantize())
