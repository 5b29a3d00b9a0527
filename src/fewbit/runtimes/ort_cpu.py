"""onnxruntime on a CPU, as version 1.31 fuses graphs by default (`GraphOptimizationLevel.ORT_ENABLE_ALL`).

A Conv runs in integers only if its output is rounded, a Gemm or MatMul also without; with an int32 bias it stays one.
Relu and Clip vanish in a rounding whose zero point is the lowest code; else the layer before them falls back to float.
"""

from __future__ import annotations

from fewbit.formats.cast import FP16
from fewbit.formats.integer import INT8, INT16, UINT8, UINT16
from fewbit.formats.minifloat import E4M3, E4M3FNUZ, E5M2, E5M2FNUZ
from fewbit.runtimes.runtime import Runtime
from fewbit.runtimes.saturation import Saturation

ORT_CPU = Runtime(
    name="ort-cpu",
    # 16 bits and float8 are read and computed in float.
    inputs=(INT8, UINT8, INT16, UINT16, E4M3, E5M2, E4M3FNUZ, E5M2FNUZ),
    weight_floats=(E4M3, E5M2, E4M3FNUZ, E5M2FNUZ),
    zero_points=True,
    # onnxruntime makes them unsigned anyway, and int8 weights as well as uint8 ones go with uint8.
    unsigned_inputs=True,
    bias="int32",
    takes_outputs=True,
    products=frozenset({"Conv", "Gemm", "MatMul"}),
    products_with_output=frozenset({"Conv"}),
    products_with_activation=frozenset({"Gemm", "MatMul"}),
    absorbed=frozenset({"Relu", "Clip"}),
    carriers=frozenset(
        {"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid", "Softmax"}
    ),
    movers=frozenset(
        {
            "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "ReduceMax", "ReduceMin", "Reshape", "Resize",
            "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
        }
    ),
    dynamic=True,
    packed_bits=frozenset({2, 4, 8}),
    exact_bits=frozenset({4}),
    # It fuses both into operators that take neither: such files do not load, or fail when they run.
    float8_products=False,
    blocks_of_bytes=False,
    # It has no operators for bfloat16 but Cast; those that float16 lacks run in float32.
    casts=(FP16,),
    without_vnni=Saturation(by_position=False, exact_uint8=True),
)  # fmt: skip
