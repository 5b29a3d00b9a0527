"""MIGraphX (its source at f729a52): `convolution` and `dot` run in integers, from int8 and float8, not uint8.

Other zero points than 0 are computed by correction terms, so the table leaves them out; biases stay float.
"""

from __future__ import annotations

from fewbit.formats.cast import FP16
from fewbit.formats.integer import INT8
from fewbit.formats.minifloat import E4M3, E4M3FNUZ, E5M2, E5M2FNUZ
from fewbit.runtimes.runtime import Runtime

MIGRAPHX = Runtime(
    name="migraphx",
    inputs=(INT8, E4M3, E5M2, E4M3FNUZ, E5M2FNUZ),
    weight_floats=(E4M3, E5M2, E4M3FNUZ, E5M2FNUZ),
    zero_points=False,
    unsigned_inputs=False,
    bias="float",
    takes_outputs=False,
    casts=(FP16,),
    products=frozenset({"Conv", "Gemm", "MatMul"}),
)
