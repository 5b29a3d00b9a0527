"""Small graphs, quantized by hand as a front end would, and a simulation of them in NumPy that knows no runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from fewbit.activation import Activation
from fewbit.catalogue import lookup
from fewbit.checkpoints.onnx.writer import write
from fewbit.interfaces import Activations, QuantizedLayer
from fewbit.onnx_graph.live import OnnxModel, Rounded
from fewbit.onnx_graph.placement import place
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_input_scheme, parse_scheme
from fewbit.statistics import STATISTICS


def ran(model, feeds, outputs=None, **entries):
    """Run an `onnx.ModelProto` or a file in onnxruntime, fused as by default; return arrays by name.

    Integers are added in 32 bits on a processor without VNNI too, unless `entries` say otherwise.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for key, value in ({"session__x64quantprecision": "1"} | entries).items():
        options.add_session_config_entry(key.replace("__", "."), value)
    source = str(model) if isinstance(model, str | Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = outputs or [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def float_values(model, feeds):
    """Return every value of the float graph, as onnxruntime computes it."""
    proto = ir.to_proto(model.graph.clone())
    seen = {value.name for value in proto.graph.output}
    made = [name for node in proto.graph.node for name in node.output if name and name not in seen]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made)
    return {**feeds, **ran(proto, feeds)}


def calibrated(scheme, arrays):
    """Return the rounding by the range of `arrays`."""
    seen = lookup(STATISTICS, scheme.ranging.statistic, what="statistic").init(1, np.zeros(1, np.float32))
    for array in arrays:
        seen.update(array.astype(np.float32).reshape(-1, 1))
    return Activation.calibrated(scheme, seen)


def simulated(model, feeds):
    """Return the outputs of a model whose layers compute what their codes stand for: NumPy, one node at a time."""
    values = dict(feeds)
    graph = model.graph.graph
    for name, value in graph.initializers.items():
        values[name] = value.const_value.numpy()
    results = {own.result.name: model.layers.get(name) for name, own in model.found.items()}
    owners = {id(own.node): own for name, own in model.found.items() if name in model.layers}
    biases = {
        own.bias_value.name: model.layers[name].bias
        for name, own in model.found.items()
        if name in model.layers and model.layers[name].bias is not None
    }
    for name, bias in biases.items():
        values[name] = np.asarray(bias.dequantize()).reshape(values[name].shape)

    def settled(name, array):
        rounding = model.values.get(name)
        own = results.get(name)
        if own is not None and own.activations.output is not None:
            rounding = own.activations.output
        return array if rounding is None else np.asarray(rounding.rounded(array)).astype(array.dtype)

    values.update({name: settled(name, array) for name, array in feeds.items()})
    for node in graph:
        given = {value.name: values[value.name] for value in node.inputs if value is not None}
        proto = ir.to_proto(node)
        own = owners.get(id(node))
        if own is not None:
            rounded = model.layers[own.layer.name]
            stored = own.arrangement.stored(np.asarray(rounded.qtensor.dequantize()))
            dtype = own.weight.const_value.numpy().dtype
            given["weight of the layer"] = stored.astype(dtype)
            proto.input[own.weight_index] = "weight of the layer"
            if rounded.activations.input is not None:
                data = np.asarray(rounded.activations.input.rounded(given[own.data.name])).astype(dtype)
                given["data of the layer"] = data
                proto.input[own.data_index] = "data of the layer"
        made = ReferenceEvaluator(proto, opsets=dict(model.graph.opset_imports)).run(None, given)
        values.update((value.name, settled(value.name, array)) for value, array in zip(node.outputs, made, strict=True))
    return {value.name: values[value.name] for value in graph.outputs}


class Case:
    """A graph with its inputs, on the way from float to a file."""

    def __init__(self, text, seed=0, dtype=np.float32, **shapes):
        """Parse `text`, give it normal weights of `shapes` (an array is taken as it is) and normal inputs."""
        draw = np.random.default_rng(seed)
        proto = parser.parse_model(text)
        for name, shape in shapes.items():
            own = draw.normal(size=shape).astype(dtype) if isinstance(shape, tuple) else shape
            proto.graph.initializer.append(numpy_helper.from_array(own, name))
        self.feeds = {}
        for value in proto.graph.input:
            kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            shape = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
            if np.issubdtype(kind, np.integer):
                self.feeds[value.name] = draw.integers(0, 8, size=shape).astype(kind)
            else:
                self.feeds[value.name] = draw.normal(size=shape).astype(kind)
        self.proto = proto
        self.model = OnnxModel.of(ir.from_proto(proto), Path("case.onnx"))

    def quantize(self, runtime, weight="int8", given="int8 static", output=None, only=None):
        """Give layers schemes as a front end does, with ranges of the inputs at hand, and values as `place` says."""
        model, seen = self.model, float_values(self.model, self.feeds)
        names = [name for name in model.found if only is None or name in only]
        schemes = {}
        for name in names:
            own = model.found[name]
            embedding = own.layer.kind == "embedding"
            rounding = parse_input_scheme(given).stored_as("float32") if given and not embedding else None
            scheme = parse_scheme(weight).stored_as("float32")
            schemes[name] = QuantizedLayer(own.layer, scheme, rounding)
        placement = place(model, schemes.values(), runtime)
        for name, scheme in placement.values.items():
            group = next((group for group in placement.groups if name in group), (name,))
            model.values[name] = calibrated(scheme, [seen[other] for other in group])
        for name, own in schemes.items():
            made = model.found[name]
            rounding = None
            if own.input is not None:
                data = made.data.name
                fixed = calibrated(own.input, [seen[data]]) if own.input.static else Activation(scheme=own.input)
                rounding = model.values.get(data, fixed)
            after = output and calibrated(parse_input_scheme(output).stored_as("float32"), [seen[made.result.name]])
            stored = np.asarray(made.weight.const_value.numpy(), np.float32)
            model.layers[name] = Rounded(
                qtensor=quantize(made.arrangement.matrix(stored), own.scheme),
                activations=Activations(input=rounding, output=after or None),
            )
        return self

    def write(self, runtime, path, **options):
        """Write the model, and have onnx check the file."""
        written = write(self.model, runtime, path, **options)
        onnx.checker.check_model(written.path, full_check=True)
        return written

    def simulated(self):
        """Return the first output of the simulation."""
        return next(iter(simulated(self.model, self.feeds).values()))

    def float(self):
        """Return the first output of the float graph."""
        return next(iter(ran(ir.to_proto(self.model.graph.clone()), self.feeds).values()))

    def damaged(self, factor=2.0):
        """Double the scale of the first layer: what every comparison has to notice."""
        name, own = next(iter(self.model.layers.items()))
        self.model.layers[name] = replace(
            own, qtensor=replace(own.qtensor, scale=own.qtensor.scale * np.float32(factor))
        )
        return self


#: Residuals, pools, an activation with two readers of its input, Relu and Clip: what a small CNN is made of.
NETWORK = """<ir_version: 8, opset_import: ["" : 17]> g (float[2,3,16,16] x) => (float[2,5] y)
<float lo={0}, float hi={6}> {
    c1 = Conv<pads=[1,1,1,1]>(x,w1,b1)
    r1 = Relu(c1)
    p1 = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r1)
    c2 = Conv<pads=[1,1,1,1],group=8>(p1,w2,b2)
    r2 = Clip(c2,lo,hi)
    c3 = Conv(r2,w3,b3)
    s3 = Add(c3,p1)
    r3 = Relu(s3)
    c4 = Conv<pads=[1,1,1,1]>(r3,w4,b4)
    g4 = Sigmoid(c4)
    m4 = Mul(c4,g4)
    a4 = GlobalAveragePool(m4)
    f4 = Flatten(a4)
    y = Gemm<transB=1>(f4,w5,b5)
}"""
SHAPES = {"w1": (8, 3, 3, 3), "w2": (8, 1, 3, 3), "w3": (8, 8, 1, 1), "w4": (8, 8, 3, 3), "w5": (5, 8)}


def small_cnn(**options):
    """Return a small CNN whose values neither vanish nor explode."""
    draw = np.random.default_rng(5)
    own = {name: draw.normal(size=shape) / np.sqrt(np.prod(shape[1:])) for name, shape in SHAPES.items()}
    own |= {f"b{place}": draw.normal(size=own[f"w{place}"].shape[0]) * 0.1 for place in range(1, 6)}
    return Case(NETWORK, **{name: array.astype(np.float32) for name, array in own.items()}, **options)


def relative(actual, expected):
    """Return the root mean square of the difference in units of that of `expected`."""
    difference = actual.astype(np.float64) - expected.astype(np.float64)
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected.astype(np.float64) ** 2)))


@pytest.fixture
def case():
    """Make a case from the text of a graph and the shapes of its weights."""
    return Case


@pytest.fixture
def cnn():
    """Make a case of the small CNN."""
    return small_cnn


@pytest.fixture
def run():
    """Run a file or a model in onnxruntime."""
    return ran


@pytest.fixture
def error():
    """Return how far one array is from another."""
    return relative
