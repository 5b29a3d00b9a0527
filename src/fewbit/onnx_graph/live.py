"""A live ONNX model: the float graph, which is never edited, and beside it what quantization has made of its parts.

The front end fills `layers` and `values`; a simulation and every writer build their own graph from a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fewbit.activation import Activation
from fewbit.float_bias import FloatBias
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces import Activations
from fewbit.onnx_graph.constants import fold_constants
from fewbit.onnx_graph.file import read_model
from fewbit.onnx_graph.layers import GraphLayer, find_layers
from fewbit.onnx_graph.pooling import pool_means
from fewbit.qtensor import QTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """The quantized form of a layer."""

    #: The weight as (out, in), NumPy arrays.
    qtensor: QTensor
    #: How its input and output are rounded.
    activations: Activations
    #: Its bias in int32, or another one; `None`: it stays as it is.
    bias: IntegerBias | FloatBias | None = None


@dataclass(slots=True)
class OnnxModel:
    """A graph and the quantized forms that are installed in it."""

    graph: ir.Model
    #: Where the file was, for messages; its external data is mapped from there.
    path: Path
    #: The layers of the graph, by name, in its order.
    found: dict[str, GraphLayer]
    #: Quantized forms that are installed, by the name of the layer.
    layers: dict[str, Rounded] = field(default_factory=dict)
    #: Roundings of further values, by the name of the value: what flows between layers that run in integers.
    values: dict[str, Activation] = field(default_factory=dict)
    #: How the operands of products inside attention are rounded, by the name of the product and of the operand.
    products: dict[str, Mapping[str, Activation]] = field(default_factory=dict)
    #: What the front end has made ready to run, and what was installed then.
    ready: list[tuple[tuple[object, ...], Any]] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def read(cls, path: str | Path) -> OnnxModel:
        """Return the model in the file at `path`; raises `SourceError` as `read_model` does."""
        path = Path(path)
        return cls.of(read_model(path), path)

    @classmethod
    def of(cls, graph: ir.Model, path: Path) -> OnnxModel:
        """Return the model of a graph, whose constants are brought into one form."""
        fold_constants(graph)
        pool_means(graph)
        return cls(graph, path, {own.layer.name: own for own in find_layers(graph)})

    def copy(self) -> tuple[ir.Model, dict[str, GraphLayer]]:
        """Return a copy of the float graph to edit, sharing its numbers, and the layers in it by name."""
        graph = self.graph.clone()
        return graph, {own.layer.name: own for own in find_layers(graph)}
