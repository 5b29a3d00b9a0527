"""TensorRT with explicit quantization (its documentation, "Working with Quantized Types", versions 10 and 11).

Symmetric only; Q/DQ on all inputs of weighted operators and on the skip input of a residual Add, none on outputs;
biases stay float, since int32 ones behind a DequantizeLinear are rejected.
"""

from __future__ import annotations

from fewbit.formats.integer import INT8
from fewbit.formats.minifloat import E4M3
from fewbit.runtimes.runtime import PRODUCTS, Runtime

TENSORRT = Runtime(
    name="tensorrt",
    inputs=(INT8, E4M3),
    weight_floats=(E4M3,),
    zero_points=False,
    unsigned_inputs=False,
    bias="float",
    takes_outputs=False,
    products=PRODUCTS,
    skip_inputs=True,
)
