"""Schemes whose scale is quantized too: microscaling (MX), NVFP4, double-quantized NF4.

MX: groups of 32 share a power of two (OCP Microscaling Formats 1.0). NVFP4: groups of 16 share an e4m3 scale, and the
tensor a float32 (NVIDIA, 2025), here a power of two. Double-quantized NF4: groups of 64 share an e4m3 scale, 256 scales
a float32 (QLoRA, arXiv 2305.14314, section 3, there with 8-bit codes of scales less their mean).
"""

from __future__ import annotations

from fewbit.formats.codebook import NF4
from fewbit.formats.minifloat import E2M1, E2M3, E3M2, E4M3, E5M2, Float
from fewbit.formats.power_of_two import PowerOfTwo
from fewbit.ranges.fixed import Fixed
from fewbit.ranges.octave import Octave
from fewbit.schemes.granularity import PerGroup, PerTensor, PerTile
from fewbit.schemes.scheme import Scheme


def microscaling(element: Float, up_from: float | None = None) -> Scheme:
    """Return groups of 32 of `element` under a power of two.

    A group takes the next power from `up_from` times the largest element value on. Left out: where its largest
    magnitude lies nearer to the next binade; the specification's example truncates, which clips more.
    """
    next_binade = 2.0
    while next_binade <= element.maximum:
        next_binade *= 2.0
    up_from = up_from or (1.0 + next_binade / element.maximum) / 2.0
    scales = Scheme(format=PowerOfTwo(up_from), granularity=PerTensor(), range_method=Fixed(1.0))
    return Scheme(format=element, granularity=PerGroup(32), scale_scheme=scales)


MXFP4 = microscaling(E2M1)
MXFP6 = microscaling(E2M3)
MXFP6E3M2 = microscaling(E3M2)
#: Nothing is clipped: 1 + 2^-23 follows 1. Beyond 448, where the next code is NaN, the next power has the level 480. It
#: costs next to nothing, since all but the smallest numbers keep their mantissa.
MXFP8 = microscaling(E4M3, 1.0 + 2.0**-23)
MXFP8E5M2 = microscaling(E5M2)
NVFP4 = Scheme(
    format=E2M1,
    granularity=PerGroup(16),
    scale_scheme=Scheme(format=E4M3, granularity=PerTensor(), scale_type="float32", range_method=Octave()),
)
NF4_DOUBLE = Scheme(
    format=NF4,
    granularity=PerGroup(64),
    scale_scheme=Scheme(format=E4M3, granularity=PerTile(16, 16), scale_type="float32"),
)

#: Whole schemes by name.
BLOCK_FORMATS = {
    "mxfp4": "fewbit.schemes.block_formats:MXFP4",
    "mxfp6": "fewbit.schemes.block_formats:MXFP6",
    "mxfp6e3m2": "fewbit.schemes.block_formats:MXFP6E3M2",
    "mxfp8": "fewbit.schemes.block_formats:MXFP8",
    "mxfp8e5m2": "fewbit.schemes.block_formats:MXFP8E5M2",
    "nvfp4": "fewbit.schemes.block_formats:NVFP4",
    "nf4-double": "fewbit.schemes.block_formats:NF4_DOUBLE",
}
