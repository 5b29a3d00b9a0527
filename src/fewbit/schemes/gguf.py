"""The blocks of GGUF as schemes: 32 numbers under a float16 scale.

Q8_0: d * q, |q| <= 127. Q4_0: d * (q - 8). Source: ggml-common.h.
"""

from __future__ import annotations

from fewbit.formats.integer import Int
from fewbit.schemes.granularity import PerGroup
from fewbit.schemes.scheme import Scheme

Q8_0 = Scheme(format=Int(8, narrow=True), granularity=PerGroup(32), scale_type="float16")
Q4_0 = Scheme(format=Int(4), granularity=PerGroup(32), scale_type="float16")
#: Schemes by the name of their block.
GGUF_SCHEMES = {"Q8_0": Q8_0, "Q4_0": Q4_0}


def kind_of(scheme: Scheme) -> str | None:
    """Return the name of the block that holds codes of `scheme`, or `None`."""
    for kind, own in GGUF_SCHEMES.items():
        alike = scheme.format, scheme.granularity, scheme.symmetric, scheme.scale_type
        if alike == (own.format, own.granularity, own.symmetric, own.scale_type) and scheme.scale_scheme is None:
            return kind
    return None


def scheme_of(kind: str) -> Scheme:
    """Return the scheme of a block by its name."""
    return GGUF_SCHEMES[kind]
