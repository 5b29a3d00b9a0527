"""A quantized torch layer and the nodes of a graph that read its weight: what each becomes there, or why it cannot.

A graph rounds right at the node that multiplies; torch around the whole forward of a layer. What else runs in that
forward, by the exporter's notes, therefore may only move numbers or add a bias.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from fewbit.activation import Activation
from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.frontends.torch.rounding import Rounding
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces import Activations
from fewbit.numerics.namespace import to_numpy
from fewbit.onnx_graph.layers import SCOPES, GraphLayer
from fewbit.onnx_graph.live import Rounded
from fewbit.onnx_graph.padding import pads_alike
from fewbit.qtensor import QTensor

#: Operators that put numbers elsewhere: a rounding before is one behind.
_MOVES = ("Identity", "Squeeze", "Unsqueeze")
#: Why a layer is not in the graph at all.
UNREACHED = "a run on the example batch does not reach it; keep it float, or give a batch that does"
_PREPARED = "its forward multiplies by something that it computes from its weight; keep it float"


@dataclass
class GraphForm:
    """A layer in a graph; fill `uses` before asking for the rest."""

    layer: QuantizedLayer
    #: Every name that the layer has in its module.
    names: tuple[str, ...]
    #: The nodes that read its weight.
    uses: list[GraphLayer] = field(default_factory=list)

    def rounded(self) -> Iterator[tuple[str, Rounded]]:
        """Yield the name in the graph and the form of each node.

        Where the weight is read past the forward of the layer, nothing but the weight is rounded, as in torch.
        """
        alone = Rounded(qtensor=self.qtensor, activations=Activations())
        called = Rounded(qtensor=self.qtensor, activations=self.activations, bias=self.bias)
        for use in self.uses:
            if self._is_call(use):
                yield use.layer.name, called
            elif self._is_same(use):
                yield use.layer.name, alone

    def is_found(self) -> bool:
        """Whether there is a node to install the layer at."""
        return any(self._is_call(use) or self._is_same(use) for use in self.uses)

    def is_twin(self, other: GraphForm) -> bool:
        """Whether the codes of both stand for the same numbers, as those of layers with a tied weight do."""
        return np.array_equal(self.qtensor.dequantize(), other.qtensor.dequantize())

    def problem(self, graph: ir.Model) -> str | None:
        """Return why the graph would compute something else than the layer, with the remedy, or `None`."""
        if not self.is_found():
            return _PREPARED if any(value.uses() for value in self._weights(graph)) else UNREACHED
        found = (self._call_problem(use) for use in self.uses if self._is_call(use))
        return next((text for text in found if text), None)

    @cached_property
    def qtensor(self) -> QTensor:
        """The weight as NumPy arrays."""
        return self.layer.qtensor.map(to_numpy)

    @cached_property
    def activations(self) -> Activations:
        """What is rounded before and behind, as NumPy arrays."""
        return Activations(input=_numbers(self.layer.input), output=_numbers(self.layer.output))

    @cached_property
    def bias(self) -> IntegerBias | None:
        """The bias in int32 as NumPy arrays."""
        own = self.layer.integer_bias
        return None if own is None else IntegerBias(codes=to_numpy(own.codes), scale=to_numpy(own.scale))

    def _weights(self, model: ir.Model) -> Iterator[ir.Value]:
        wanted = {f"{name}.weight" for name in self.names}
        for graph in model.graphs():
            yield from (value for name, value in graph.initializers.items() if name in wanted)

    def _is_call(self, use: GraphLayer) -> bool:
        """Whether a node is part of the forward of the layer; without a note on that it is taken for it."""
        return SCOPES not in use.node.metadata_props or self._is_inside(use.node)

    def _is_inside(self, node: ir.Node) -> bool:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        # The last one is the operation; some exports number the calls of a module: `fc@1`.
        return any(scope.partition("@")[0] in self.names for scope in scopes[:-1])

    def _is_same(self, use: GraphLayer) -> bool:
        """Whether a node reads the very numbers that the codes stand for, laid out as the layer has them."""
        held = use.weight.const_value
        assert held is not None
        found = use.arrangement.matrix(held.numpy())
        return np.array_equal(found, np.asarray(self.qtensor.dequantize()).astype(found.dtype, copy=False))

    def _call_problem(self, use: GraphLayer) -> str | None:
        if not self._is_same(use):
            return _PREPARED
        if self.activations.input is not None and (node := self._node_before(use)):
            return (
                f"its forward has a {node.op_type} between the rounding of its input and the product; leave out `input`"
            )
        if self.activations.output is not None and (node := self._node_behind(use)):
            return f"a {node.op_type} lies between its product and the rounding of its output; leave out `output`"
        added = self.layer.bias is not None and (self.bias is not None or self.activations.output is not None)
        if added and use.bias_value is None:
            return "the graph does not add its bias right behind the product; leave out `bias` and `output`"
        return None

    def _node_before(self, use: GraphLayer) -> ir.Node | None:
        """Return what computes something in the forward of the layer before the product."""
        value, results = use.data, {id(own.result) for own in self.uses}
        while (node := value.producer()) is not None and id(value) not in results and self._is_inside(node):
            source = node.inputs[0]
            if not _moves(node) or source is None:
                return node
            value = source
        return None

    def _node_behind(self, use: GraphLayer) -> ir.Node | None:
        """Return what computes something between the product and the end of the forward of the layer."""
        if use.bias_add is not None and not self._is_inside(use.bias_add):
            return use.bias_add
        waiting, products = [use.result], {id(own.node) for own in self.uses}
        while waiting:
            for node, _ in waiting.pop().uses():
                if not self._is_inside(node) or id(node) in products:
                    continue
                if not _moves(node):
                    return node
                waiting.append(node.outputs[0])
        return None


def _numbers(rounding: Rounding | None) -> Activation | None:
    return None if rounding is None else rounding.activation.like(np.empty(0, np.float32))


def _moves(node: ir.Node) -> bool:
    return node.op_type in _MOVES or pads_alike(node)
