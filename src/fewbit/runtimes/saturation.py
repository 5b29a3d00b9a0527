"""How a runtime adds integer products on x86 without VNNI, where vpmaddubsw cuts sums of two at 16 bits.

Which weights are neighbours is the runtime's packing; that of onnxruntime 1.31 and OpenVINO 2026.4 was seen on an
AMD Zen 3, bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """Pairs of products of uint8 and int8 that are cut to 16 bits."""

    #: Whether the channels of each position of a convolution without groups begin a new pair; else windows are whole.
    by_position: bool
    #: Whether weights stored as uint8 are multiplied in integers, and exactly; else they are in float.
    exact_uint8: bool


def saturates(flags: frozenset[str]) -> bool:
    """Whether a processor with these `flags`, named as Linux names them in /proc/cpuinfo, adds pairs in 16 bits.

    >>> saturates(frozenset({"avx2", "fma"})), saturates(frozenset({"avx2", "avx512_vnni"}))
    (True, False)
    """
    return "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}
