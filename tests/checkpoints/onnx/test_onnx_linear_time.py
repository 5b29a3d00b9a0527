"""Writing takes the same time for each layer in a small graph and in a large one."""

import gc
import time
from dataclasses import replace

import numpy as np
import pytest

from fewbit.activation import Activation
from fewbit.checkpoints.onnx.writer import write
from fewbit.interfaces import Activations, QuantizedLayer
from fewbit.onnx_graph.live import Rounded
from fewbit.onnx_graph.placement import place
from fewbit.qtensor import quantize
from fewbit.runtimes import runtime_named
from fewbit.schemes.notation import parse_input_scheme, parse_scheme

ORT = runtime_named("ort-cpu")


def seconds_a_layer(case, path, layers, given):
    """Return the time of the processor for placing and writing a chain of Gemm and Relu, by layer."""
    chain = " ".join(f"g{i} = Gemm(r{i},w{i},b{i}) r{i + 1} = Relu(g{i})" for i in range(layers))
    shapes = {f"w{i}": (16, 16) for i in range(layers)} | {f"b{i}": (16,) for i in range(layers)}
    head = f'<ir_version: 8, opset_import: ["" : 13]> g (float[4,16] r0) => (float[4,16] r{layers})'
    own = case(f"{head} {{ {chain} }}", **shapes)
    weight, rounding = parse_scheme("int8").stored_as("float32"), parse_input_scheme(given).stored_as("float32")
    codes = quantize(np.ones((16, 16), np.float32), weight)
    fixed = Activation(scheme=rounding, scale=np.float32(0.1), zero_point=np.float32(-128))
    layer = Rounded(
        qtensor=codes, activations=Activations(input=fixed if rounding.static else Activation(scheme=rounding))
    )
    quantized = [QuantizedLayer(found.layer, weight, rounding) for found in own.model.found.values()]
    gc.collect()
    start = time.process_time()
    own.model.values = {
        name: replace(fixed, scheme=scheme) for name, scheme in place(own.model, quantized, ORT).values.items()
    }
    own.model.layers = dict.fromkeys(own.model.found, layer)
    write(own.model, ORT, path)
    return (time.process_time() - start) / layers


@pytest.mark.slow
@pytest.mark.parametrize("given", ["int8 static", "int8 tensor"])
def test_eight_hundred_layers_take_at_most_twice_the_time_of_a_hundred_each(case, tmp_path, given):
    for path in ("warm", "small", "large"):
        (tmp_path / path).mkdir()
    seconds_a_layer(case, tmp_path / "warm" / "m.onnx", 10, given)
    small = min(seconds_a_layer(case, tmp_path / "small" / f"{i}.onnx", 100, given) for i in range(3))
    large = min(seconds_a_layer(case, tmp_path / "large" / f"{i}.onnx", 800, given) for i in range(2))
    assert large < 2 * small
