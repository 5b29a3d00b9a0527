"""OpenVINO on a CPU, version 2026: Q/DQ pairs become its low-precision operators; a layer needs rounded inputs only.

A convolution takes an Add behind it into itself where the sum is rounded; pools and reshapes then carry integers too.
"""

from __future__ import annotations

from fewbit.formats.integer import INT8, UINT8
from fewbit.runtimes.runtime import Runtime
from fewbit.runtimes.saturation import Saturation

OPENVINO = Runtime(
    name="openvino",
    inputs=(INT8, UINT8),
    zero_points=True,
    unsigned_inputs=True,
    bias="float",
    takes_outputs=True,
    # It has an operator for transposed convolutions in eight bits, and did not use it.
    products=frozenset({"Conv", "Gemm", "MatMul"}),
    absorbed=frozenset({"Relu", "Clip"}),
    carriers=frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "Mul"}),
    movers=frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}),
    # It pads the channels of a position, but not in groups; weights of uint8 it turns into float32.
    without_vnni=Saturation(by_position=True, exact_uint8=False),
)
