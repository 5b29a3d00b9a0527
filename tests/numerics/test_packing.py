"""Packing equals shifting into one big Python integer, and unpacking undoes it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewbit.numerics.packing import pack, packed_length, unpack

BITS = range(1, 9)


@st.composite
def codes_and_bits(draw):
    bits = draw(st.integers(1, 8))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=37))
    return draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1))), bits


def big_integer(row: list[int], bits: int) -> list[int]:
    """Return the bytes of the number whose base-2^bits digits are `row`, lowest first."""
    stream = sum(code << (place * bits) for place, code in enumerate(row))
    return list(stream.to_bytes(-(-len(row) * bits // 8), "little"))


def all_codes(bits: int, length: int = 301) -> np.ndarray:
    """Return two rows in which every code occurs."""
    codes = np.random.default_rng(bits).integers(0, 2**bits, size=(2, length), dtype=np.uint8)
    codes[0, : 2**bits] = np.arange(2**bits)
    return codes


@given(codes_and_bits())
def test_a_row_is_one_little_endian_integer(drawn):
    codes, bits = drawn
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (*codes.shape[:-1], packed_length(codes.shape[-1], bits))
    for place in np.ndindex(codes.shape[:-1]):
        assert packed[place].tolist() == big_integer(codes[place].tolist(), bits)


@given(codes_and_bits())
def test_unpack_undoes_pack(drawn):
    codes, bits = drawn
    np.testing.assert_array_equal(unpack(pack(codes, bits), bits, codes.shape[-1]), codes, strict=True)


@given(codes_and_bits())
def test_torch_packs_the_same_bytes_as_numpy(drawn):
    codes, bits = drawn
    packed = pack(torch.from_numpy(codes), bits)
    np.testing.assert_array_equal(packed.numpy(), pack(codes, bits), strict=True)
    np.testing.assert_array_equal(unpack(packed, bits, codes.shape[-1]).numpy(), codes, strict=True)


@pytest.mark.parametrize("bits", BITS)
def test_every_framework_packs_every_code(bits, xp):
    codes = all_codes(bits)
    packed = pack(xp.from_numpy(codes), bits)
    assert xp.to_numpy(packed).tolist() == [big_integer(row, bits) for row in codes.tolist()]
    np.testing.assert_array_equal(xp.to_numpy(unpack(packed, bits, codes.shape[-1])), codes, strict=True)


@pytest.mark.parametrize("bits", BITS)
def test_bits_after_the_last_code_are_zero_and_are_not_read(bits):
    codes = np.full((1, 13), 2**bits - 1, np.uint8)  # 13 * bits is a whole number of bytes for 8 bits only
    packed = pack(codes, bits)
    used = 13 * bits - 8 * (packed.shape[-1] - 1)
    assert packed[0, -1] == 2**used - 1
    packed[0, -1] = 0xFF
    np.testing.assert_array_equal(unpack(packed, bits, 13), codes)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64])
def test_any_integer_type_packs_to_the_same_bytes(dtype, xp):
    codes = all_codes(5)
    assert xp.to_numpy(pack(xp.from_numpy(codes.astype(dtype)), 5)).tolist() == pack(codes, 5).tolist()


def test_eight_bits_are_stored_as_they_are():
    codes = all_codes(8)
    np.testing.assert_array_equal(pack(codes, 8), codes, strict=True)


def test_sixteen_bit_codes_survive():
    codes = np.array([[0, 1, 255, 256, 40_000, 65_535]], np.uint16)
    packed = pack(codes, 16)
    assert packed.tobytes() == codes.astype("<u2").tobytes()
    np.testing.assert_array_equal(unpack(packed, 16, 6), codes, strict=True)
