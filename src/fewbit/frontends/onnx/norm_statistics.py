"""What the BatchNormalizations of a graph see on some batches: averages, each batch being normalized by itself.

In a copy each is its formula: of x (samples, channels, rest) m = mean x and v = mean (x - m)^2 over samples and rest,
which are further outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.corrections import Repaired
from fewbit.corrections.batchnorm import NO_NORM, reestimated_sentence
from fewbit.errors import CalibrationError, NonFiniteError
from fewbit.frontends.onnx.batches import Numbers, feeds_of
from fewbit.frontends.onnx.constant import numbers_of, own_constant, tensor_like
from fewbit.frontends.onnx.norm_folding import is_norm, norm_numbers
from fewbit.frontends.onnx.simulation import Simulation
from fewbit.onnx_graph.constants import is_constant
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import OnnxModel

#: Where mean and variance stand among the inputs of a norm.
_MEAN, _VARIANCE = 3, 4


@dataclass(slots=True)
class NormStatistics:
    """A graph with what its norms have seen in training, and one with what they see in the quantized model."""

    model: OnnxModel
    before: tuple[ir.Model, dict[str, GraphLayer]]
    after: tuple[ir.Model, dict[str, GraphLayer]]

    def install(self) -> None:
        """Put in what the norms see in the quantized model."""
        self.model.graph, self.model.found = self.after

    def restore(self) -> None:
        """Put back what they have seen in training."""
        self.model.graph, self.model.found = self.before


def reestimate_norms(model: OnnxModel, batches: Sequence[Any]) -> Repaired:
    """Return what the norms of the main graph see of `batches` in the model as it is now; it stays so.

    Raises:
        CalibrationError: a batch with one number a channel, which has no variance.
        NonFiniteError: the quantized model makes NaN or infinity.

    """
    names = [node.outputs[0].name or "" for node in model.graph.graph if _is_learned(node)]
    if not names:
        return NO_NORM
    found = _seen(model, names, batches)
    graph, layers = model.copy()
    for node in graph.graph:
        seen = found.get(node.outputs[0].name or "") if _is_learned(node) else None
        for place, values in zip((_MEAN, _VARIANCE), seen or (), strict=False):
            constant = own_constant(node, place)
            constant.const_value = tensor_like(constant, values)
    switch = NormStatistics(model, (model.graph, model.found), (graph, layers))
    return Repaired(sentences=(reestimated_sentence(len(names), len(batches)),), switch=switch)


def _is_learned(node: ir.Node) -> bool:
    """Whether a node normalizes by a mean and a variance that are constants."""
    return is_norm(node) and len(node.outputs) == 1 and all(is_constant(value) for value in node.inputs[1:5])


def _seen(model: OnnxModel, names: Sequence[str], batches: Sequence[Any]) -> Mapping[str, tuple[Numbers, Numbers]]:
    """Return the average mean and unbiased variance of the input of each norm, by the name of its output."""
    graph, found = model.copy()
    norms = {node.outputs[0].name: node for node in graph.graph if _is_learned(node)}
    shown = {name: _written_out(graph.graph, norms[name]) for name in names}
    trial = OnnxModel(graph, model.path, found, model.layers, model.values, model.products)
    session = Simulation(trial).whole()
    sums: dict[str, tuple[Numbers, Numbers]] = {}
    for batch in batches:
        outputs = session.run(feeds_of(model.graph.graph, batch))
        for name in names:
            mean, variance, shape = (outputs[own] for own in shown[name])
            count = int(shape[0] * shape[2])
            if count < 2:
                raise CalibrationError(
                    "correction batchnorm: a batch has one number a channel, which has no variance; give larger batches"
                )
            own = mean.astype(np.float64).reshape(-1), variance.astype(np.float64).reshape(-1) * count / (count - 1)
            sums[name] = own if name not in sums else (sums[name][0] + own[0], sums[name][1] + own[1])
    for name, own in sums.items():
        if not all(np.isfinite(values).all() for values in own):
            raise NonFiniteError(f"{name}: the inputs of this BatchNormalization hold NaN or infinity; look upstream")
    return {name: (own[0] / len(batches), own[1] / len(batches)) for name, own in sums.items()}


def _written_out(graph: ir.Graph, norm: ir.Node) -> tuple[str, str, str]:
    """Put the formula of a norm in its place; return the names of mean, variance, and the shape of its input."""
    numbers, given = norm_numbers(norm), norm.inputs[0]
    kind, name = numbers_of(norm.inputs[1]).dtype, norm.outputs[0].name or ""
    new = _Formula(graph, norm, name)
    rows = new.add("Reshape", given, new.constant(np.asarray([0, 0, -1], np.int64)))
    mean = new.mean(rows)
    apart = new.add("Sub", rows, mean)
    variance = new.mean(new.add("Mul", apart, apart))
    spread = new.add("Sqrt", new.add("Add", variance, new.constant(np.asarray(numbers.epsilon, kind))))
    gain, shift = (new.constant(numbers_of(norm.inputs[place]).reshape(1, -1, 1)) for place in (1, 2))
    moved = new.add("Add", new.add("Mul", new.add("Div", apart, spread), gain), shift)
    result = new.add("Reshape", moved, new.add("Shape", given))
    seen = (mean, variance, new.add("Shape", rows))
    norm.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    norm.outputs[0].name, result.name = None, name
    graph.outputs.extend(seen)
    first, second, third = (value.name or "" for value in seen)
    return first, second, third


@dataclass(slots=True)
class _Formula:
    """Nodes that come before another."""

    graph: ir.Graph
    before: ir.Node
    name: str
    count: int = 0

    def add(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node, and return what it makes."""
        node = ir.node(operator, list(inputs), attributes=attributes, name=self._next())
        node.outputs[0].name = self._next()
        self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def constant(self, numbers: Numbers) -> ir.Value:
        """Add a constant."""
        tensor = ir.Tensor(np.ascontiguousarray(numbers), name=self._next())
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(name=tensor.name, type=kind, shape=tensor.shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def mean(self, rows: ir.Value) -> ir.Value:
        """Return the mean over samples and rest, (1, channels, 1)."""
        if self.graph.opset_imports.get("", 0) >= 18:  # axes became an input
            return self.add("ReduceMean", rows, self.constant(np.asarray([0, 2], np.int64)), keepdims=1)
        return self.add("ReduceMean", rows, axes=[0, 2], keepdims=1)

    def _next(self) -> str:
        self.count += 1
        return f"{self.name}:norm:{self.count}"
