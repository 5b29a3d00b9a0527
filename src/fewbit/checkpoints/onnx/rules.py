"""The documented rules of TensorRT and MIGraphX for Q/DQ graphs, held against any graph: neither can run everywhere.

TensorRT: "Working with Quantized Types" of its documentation. MIGraphX: its source at f729a52. Each rule yields the
sentences of its violations and knows nothing of the writer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.onnx_graph.constants import is_constant
from fewbit.runtimes.runtime import PRODUCTS, Runtime

Rule = Callable[[ir.Model], Iterator[str]]
_INT8, _INT4 = ir.DataType.INT8, ir.DataType.INT4
_FNUZ = (ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2FNUZ, ir.DataType.FLOAT8E5M2)
_E4M3 = ir.DataType.FLOAT8E4M3FN
#: What becomes part of a layer that stands before it.
_BEHIND = ("Relu", "Clip", "BatchNormalization")
#: What may read a rounded value: layers, the Add of a skip, and what a rounding may be moved across.
_READERS = PRODUCTS | {
    "Add", "Flatten", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


def violations(model: ir.Model, runtime: Runtime) -> list[str]:
    """Return a sentence for each place where `model` breaks a rule of `runtime`; empty for one that has none here."""
    return [text for rule in RULES.get(runtime.name, ()) for text in rule(model)]


def zero_points_are_zero(model: ir.Model) -> Iterator[str]:
    """Quantization is symmetric: every zero point is 0."""
    for node in _quantizers(model):
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        if zero is not None and (not is_constant(zero) or _numbers(zero).any()):
            yield f"{_called(node)}: its zero point is not 0"


def biases_are_float(model: ir.Model) -> Iterator[str]:
    """A DequantizeLinear of int32, as integer biases have, is rejected."""
    for node in _quantizers(model):
        if node.op_type == "DequantizeLinear" and _codes_type(node) == ir.DataType.INT32:
            yield f"{_called(node)}: int32 codes; biases stay float"


def scales_of_inputs_are_per_tensor(model: ir.Model) -> Iterator[str]:
    """What is rounded while the model runs has one scale."""
    for node in _quantizers(model):
        scale = node.inputs[1] if node.op_type == "QuantizeLinear" else None
        if scale is not None and (not is_constant(scale) or _numbers(scale).size != 1):
            yield f"{_called(node)}: its scale is not one number"


def scales_of_weights_lie_along_outputs(model: ir.Model) -> Iterator[str]:
    """Scales by channel: axis 0 of Conv, 1 of ConvTranspose, the last of MatMul; blocks lie along the inputs."""
    for node in _products(model):
        weight = _dequantizer(node.inputs[1])
        scale = weight.inputs[1] if weight is not None else None
        if weight is None or scale is None or not is_constant(scale) or _numbers(scale).ndim != 1:
            continue
        axis, wanted = _attribute(weight, "axis", 1), _output_axis(node)
        if axis not in (wanted, wanted - _rank(weight)):
            yield f"{_called(node)}: scales of its weight along axis {axis}, not {wanted}"


def both_inputs_of_products_are_rounded(model: ir.Model) -> Iterator[str]:
    """A layer runs in few bits if its input and its weight are rounded; weights alone only in blocks or 4 bits."""
    for node in _products(model):
        data, weight = (_dequantizer(value) for value in node.inputs[:2])
        alone = weight is not None and (_blocked(weight) or _codes_type(weight) == _INT4)
        if data is None and weight is not None and not alone:
            yield f"{_called(node)}: its weight is rounded and its input is not"
        if data is not None and weight is None and is_constant(node.inputs[1]):
            yield f"{_called(node)}: its input is rounded and its weight is not"


def outputs_are_not_rounded(model: ir.Model) -> Iterator[str]:
    """Q/DQ stand where a layer reads, or an Add takes a skip: not on outputs, nor between a layer and its Relu."""
    for node in _quantizers(model):
        source = _product_before(node.inputs[0]) if node.op_type == "QuantizeLinear" else None
        if source is not None:
            readers = [user for back, _ in node.outputs[0].uses() for user, _ in back.outputs[0].uses()]
            if not readers or any(user.op_type not in _READERS for user in readers):
                yield f"{_called(node)}: rounds the output of {_called(source)} for what is no layer"


def skips_are_rounded(model: ir.Model) -> Iterator[str]:
    """The other input of an Add behind a rounded convolution is rounded too: then the Add becomes part of it."""
    for node in model.graph.all_nodes():
        data = [value for value in node.inputs if value is not None and not is_constant(value)]
        if node.op_type != "Add" or len(data) != 2:
            continue
        convolutions = [value for value in data if _is_rounded_convolution(value)]
        if convolutions and not any(_dequantizer(value) is not None for value in data):
            yield f"{_called(node)}: adds to a rounded convolution what is not rounded"


def _types(*known: ir.DataType) -> Rule:
    def codes_have_known_types(model: ir.Model) -> Iterator[str]:
        """Only some types of codes are computed in few bits."""
        for node in _quantizers(model):
            found = _codes_type(node)
            if found is not None and found not in (*known, ir.DataType.INT32):
                yield f"{_called(node)}: codes of type {found.name.lower()}"

    return codes_have_known_types


_COMMON: tuple[Rule, ...] = (
    zero_points_are_zero,
    biases_are_float,
    scales_of_inputs_are_per_tensor,
    scales_of_weights_lie_along_outputs,
    both_inputs_of_products_are_rounded,
    outputs_are_not_rounded,
)
#: Rules by the name of the runtime.
RULES: dict[str, tuple[Rule, ...]] = {
    "tensorrt": (*_COMMON, skips_are_rounded, _types(_INT8, _INT4, _E4M3)),
    "migraphx": (*_COMMON, _types(_INT8, _INT4, _E4M3, *_FNUZ)),
}


def _quantizers(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph.all_nodes() if node.op_type in ("QuantizeLinear", "DequantizeLinear"))


def _products(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph.all_nodes() if node.op_type in PRODUCTS and len(node.inputs) > 1)


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that makes `value`."""
    maker = value.producer() if value is not None else None
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _product_before(value: ir.Value | None) -> ir.Node | None:
    """Return the layer that makes `value`, through what becomes part of it: an Add, and a Relu or norm around that."""
    maker = value.producer() if value is not None else None
    while maker is not None and maker.op_type in _BEHIND:
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    if maker is not None and maker.op_type == "Add":
        makers = [own.producer() for own in maker.inputs if own is not None]
        maker = next((own for own in makers if own is not None and own.op_type in PRODUCTS), None)
    return maker if maker is not None and maker.op_type in PRODUCTS else None


def _codes_type(node: ir.Node) -> ir.DataType | None:
    """Return the type of the codes that a Q makes or a DQ reads; `None`: the zero point tells, and there is none."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    value = zero if zero is not None else node.inputs[0] if node.op_type == "DequantizeLinear" else None
    if value is None or value.const_value is None:
        maker = value.producer() if value is not None else None
        return _codes_type(maker) if maker is not None and maker.op_type == "QuantizeLinear" else None
    return value.const_value.dtype


def _is_rounded_convolution(value: ir.Value) -> bool:
    maker = value.producer()
    rounded = maker is not None and maker.op_type == "Conv" and _dequantizer(maker.inputs[0]) is not None
    return rounded and len(value.uses()) == 1


def _blocked(node: ir.Node) -> bool:
    return _attribute(node, "block_size", 0) > 0


def _attribute(node: ir.Node, name: str, usual: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else usual


def _output_axis(node: ir.Node) -> int:
    if node.op_type in ("Conv", "ConvTranspose"):
        return int(node.op_type == "ConvTranspose")
    return 0 if node.op_type == "Gemm" and _attribute(node, "transB", 0) else 1


def _rank(node: ir.Node) -> int:
    codes = node.inputs[0]
    return len(codes.const_value.shape) if codes is not None and codes.const_value is not None else 2


def _numbers(value: ir.Value) -> np.ndarray[Any, Any]:
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float32)


def _called(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or node.outputs[0].name!r}"
