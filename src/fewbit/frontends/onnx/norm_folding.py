"""Where a BatchNorm can be folded into the layer before it: by the flow of the graph, checked by the model's output.

A candidate is a BatchNormalization with constant numbers that alone reads what a Conv, ConvTranspose or Gemm makes.
The folds are made in a copy of the graph, so that taking them back is putting the graph back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fewbit.frontends.onnx.batches import Numbers
from fewbit.frontends.onnx.output_change import same
from fewbit.frontends.onnx.trial_run import TrialRun
from fewbit.known_output import KnownOutput
from fewbit.onnx_graph.constants import is_constant, origin
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import OnnxModel
from fewbit.problems import several
from fewbit.transforms import Applied
from fewbit.transforms.batchnorm import BatchNorm, folded_sentence

_Folded = Callable[[Numbers, Numbers | None, BatchNorm], tuple[Numbers, Numbers]]
#: Operators that a norm is folded into.
_TAKERS = ("Conv", "ConvTranspose", "Gemm")
#: Roundings by which outputs may differ: those of the folded weights go through the whole model.
_ROUNDINGS = 2.0**14


@dataclass(frozen=True, slots=True)
class _Pair:
    """A layer and the norm behind it, by what they make: names stay the same in a copy of the graph."""

    layer: str
    norm: str


def fold_norms(model: OnnxModel, run: TrialRun, folded: _Folded) -> Applied:
    """Fold every norm that can be folded, where what `run` returns stays the same; say which were not and why."""
    norms = [node for node in model.graph.graph if is_norm(node)]
    names = [node.outputs[0].name or "" for node in norms]
    if not norms:
        return Applied(sentences=())
    pairs = _pairs(model, norms)
    before = model.graph, model.found
    expected = run(model)
    kept: list[_Pair] = []
    for tried in ([pairs], [[pair] for pair in pairs]):
        if kept:
            break
        for some in tried if pairs else ():
            _fold(model, some, folded)
            if same(expected, run(model), _ROUNDINGS):
                kept += some
            model.graph, model.found = before
    if kept:
        _fold(model, kept, folded)
    left = [name for name in names if name not in {pair.norm for pair in kept}]
    sentences = [folded_sentence(len(kept))] if kept else []
    if left:
        sentences.append(f"{several(left)}: BatchNorm stays, no layer before it is read by it alone")

    outputs = _known_outputs(before, model, kept)

    def restore() -> None:
        model.graph, model.found = before

    return Applied(sentences=tuple(sentences), restore=restore, outputs=outputs)


def _known_outputs(
    before: tuple[ir.Model, Mapping[str, GraphLayer]], model: OnnxModel, kept: Sequence[_Pair]
) -> dict[str, KnownOutput]:
    """Return what the norms of a graph said of the outputs of the layers that they are now part of."""
    norms = {node.outputs[0].name: node for node in before[0].graph if is_norm(node)}
    layers = {own.output.name: name for name, own in model.found.items()}
    return {layers[pair.norm]: norm_numbers(norms[pair.norm]).output() for pair in kept if pair.norm in layers}


def norms_stay(model: OnnxModel) -> str:
    """Return the beginning of a sentence that says why no norm of a model is folded."""
    names = [node.outputs[0].name or "" for node in model.graph.graph if is_norm(node)]
    return f"{several(names)}: BatchNorm stays" if names else "no BatchNorm"


def is_norm(node: ir.Node) -> bool:
    """Whether `node` is a BatchNormalization."""
    return node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx")


def _pairs(model: OnnxModel, norms: Sequence[ir.Node]) -> list[_Pair]:
    layers = {id(own.output): own for own in model.found.values() if own.node.op_type in _TAKERS}
    pairs = []
    for norm in norms:
        own = layers.get(id(norm.inputs[0]))
        if own is None or own.layer.tied or own.output.is_graph_output() or len(list(own.output.uses())) != 1:
            continue
        training = norm.attributes["training_mode"].as_int() if "training_mode" in norm.attributes else 0
        plain = own.bias is not None or len(own.node.inputs) < 3 or own.node.inputs[2] is None
        whole = own.layer.module_class != "Gemm" or not {"alpha", "beta"} & set(own.node.attributes)
        if not training and plain and whole and all(is_constant(value) for value in norm.inputs[1:5]):
            pairs.append(_Pair(own.output.name or "", norm.outputs[0].name or ""))
    return pairs


def _fold(model: OnnxModel, pairs: Sequence[_Pair], folded: _Folded) -> None:
    """Give `model` a copy of its graph in which `pairs` are one node each."""
    graph, found = model.copy()
    layers = {own.output.name: own for own in found.values()}
    norms = {node.outputs[0].name: node for node in graph.graph if is_norm(node)}
    for pair in pairs:
        _fold_one(graph.graph, layers[pair.layer], norms[pair.norm], folded)
    again = OnnxModel.of(graph, model.path)
    model.graph, model.found = again.graph, again.found


def _fold_one(graph: ir.Graph, own: GraphLayer, norm: ir.Node, folded: _Folded) -> None:
    numbers = norm_numbers(norm)
    start = None if own.bias is None else np.broadcast_to(_numbers(own.bias), (own.layer.shape[0],))
    weight, bias = folded(own.arrangement.matrix(_numbers(own.weight)), start, numbers)
    name = origin(own.weight).name or own.weight.name or ""
    stored = np.ascontiguousarray(own.arrangement.stored(weight))
    old = own.weight, own.bias
    own.node.resize_inputs(3)
    for index in (own.weight_index, 2):
        own.node.replace_input_with(index, None)
    for value in old:
        if value is not None and not value.uses():
            del graph.initializers[value.name or ""]
    # A layer is called after its weight: it keeps that name where it is free now.
    own.node.replace_input_with(own.weight_index, _initializer(graph, name, stored))
    own.node.replace_input_with(2, _initializer(graph, f"{own.layer.name}.bias", bias))
    # What reads the norm, the caller of the graph among them, knows it by this name.
    result, output = norm.outputs[0], own.output
    kept = result.name
    result.replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    result.name, output.name = None, kept


def norm_numbers(norm: ir.Node) -> BatchNorm:
    """Return the numbers of a BatchNormalization, which are constants."""
    gain, shift, mean, variance = (_numbers(value) for value in norm.inputs[1:5])
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    return BatchNorm(mean=mean, variance=variance, gain=gain, shift=shift, epsilon=epsilon)


def _numbers(value: ir.Value | None) -> Numbers:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _initializer(graph: ir.Graph, name: str, numbers: Numbers) -> ir.Value:
    """Add a constant called `name`, or so with an addition where there is one already."""
    while name in graph.initializers:
        name += ":folded"
    tensor = ir.Tensor(numbers, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value
