"""Dense packing of n-bit codes into bytes and back, low bits first, along the last axis.

Code j of a row occupies bits [j * bits, (j + 1) * bits) of the row's little-endian bit stream; a row takes
ceil(length * bits / 8) bytes. NumPy and PyTorch arrays alike.
"""

from __future__ import annotations

from math import gcd

from fewbit.numerics.namespace import Array, array_namespace, device


def packed_length(length: int, bits: int) -> int:
    """Return how many bytes a row of `length` codes of `bits` bits takes.

    >>> packed_length(5, 3)
    2
    """
    return -(-length * bits // 8)


def pack(codes: Array, bits: int) -> Array:
    """Return `codes` (..., n), integers in [0, 2^bits), as uint8 (..., ceil(n * bits / 8))."""
    xp = array_namespace(codes)
    codes = xp.astype(codes, xp.int32, copy=False)
    length = codes.shape[-1]
    period = 8 // gcd(8, bits)  # this many codes fill whole bytes
    codes = _fill(codes, -length % period)
    rows = xp.reshape(codes, (*codes.shape[:-1], codes.shape[-1] // period, period))
    columns = []
    for byte in range(period * bits // 8):
        word = xp.zeros_like(rows[..., 0])
        for j in range(period):
            shift = j * bits - byte * 8
            if -bits < shift < 8:
                word = word | (rows[..., j] << shift if shift >= 0 else rows[..., j] >> -shift)
        columns.append(xp.astype(word & 0xFF, xp.uint8))
    packed = xp.stack(columns, axis=-1)
    packed = xp.reshape(packed, (*packed.shape[:-2], packed.shape[-2] * packed.shape[-1]))
    return packed[..., : packed_length(length, bits)]


def unpack(packed: Array, bits: int, length: int) -> Array:
    """Return the uint8 (16 bits: uint16) codes (..., length) that `pack` put into `packed` (..., bytes)."""
    xp = array_namespace(packed)
    period = 8 // gcd(8, bits)
    width = period * bits // 8
    packed = _fill(xp.astype(packed, xp.int32, copy=False), -packed.shape[-1] % width)
    rows = xp.reshape(packed, (*packed.shape[:-1], packed.shape[-1] // width, width))
    columns = []
    for j in range(period):
        code = xp.zeros_like(rows[..., 0])
        for byte in range(width):
            shift = j * bits - byte * 8
            if -bits < shift < 8:
                code = code | (rows[..., byte] >> shift if shift >= 0 else rows[..., byte] << -shift)
        columns.append(xp.astype(code & ((1 << bits) - 1), xp.uint8 if bits <= 8 else xp.uint16))
    codes = xp.stack(columns, axis=-1)
    return xp.reshape(codes, (*codes.shape[:-2], codes.shape[-2] * codes.shape[-1]))[..., :length]


def _fill(codes: Array, missing: int) -> Array:
    xp = array_namespace(codes)
    if not missing:
        return codes
    zeros = xp.zeros((*codes.shape[:-1], missing), dtype=codes.dtype, device=device(codes))
    return xp.concat([codes, zeros], axis=-1)
