"""Casts as schemes: `fp16` and `bf16`, for weights, inputs and outputs.

x' = x in 16 bits. There is no scale, so nothing shares one, nothing is chosen, and none is stored: codes are the bits
of the numbers. What the type cannot hold is for the plan to keep float (`fewbit.overflow`); elsewhere it saturates.
"""

from __future__ import annotations

from fewbit.formats import cast
from fewbit.schemes.scheme import Scheme

FP16 = Scheme(format=cast.FP16)
BF16 = Scheme(format=cast.BF16)

#: Casts by name.
CASTS = {
    "fp16": "fewbit.schemes.casts:FP16",
    "bf16": "fewbit.schemes.casts:BF16",
}
