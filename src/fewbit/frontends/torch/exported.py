"""A graph as torch's exporter leaves it: sizes and outputs named, constants folded, notes on torch's side taken off.

Only what depends on no parameter is folded, so that every weight stays the number that the codes stand for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants as fold_nodes
from torch import Tensor

from fewbit.onnx_graph.constants import fold_constants, is_constant, origin
from fewbit.onnx_graph.layers import SCOPES
from fewbit.onnx_graph.padding import merge_padding


def fixed_sizes(program: Any) -> dict[str, int]:
    """Return the sizes of an exported program that have a name and only one number."""
    ranges = program.range_constraints.items()
    return {str(symbol): int(own.lower) for symbol, own in ranges if own.lower == own.upper}


def name_axes(model: ir.Model, sizes: Mapping[str, int]) -> None:
    """Put in the sizes that are known, and name the others after the first input that has them."""
    names: dict[str, int | str] = dict(sizes)
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                plain = "batch" if axis == 0 and "batch" not in names.values() else f"{value.name}_axis_{axis}"
                names.setdefault(dim.value, plain)
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


def output_names(output: Any, own: str = "") -> list[str]:
    """Return names for the tensors in what a module returns, in order."""
    if isinstance(output, Tensor):
        return [own or "output"]
    if isinstance(output, Mapping):
        parts = {str(key): part for key, part in output.items()}
    else:
        listed = output if isinstance(output, (tuple, list)) else ()
        parts = {str(place) if own else f"output_{place}": part for place, part in enumerate(listed)}
    return [name for key, part in parts.items() for name in output_names(part, f"{own}_{key}" if own else key)]


def name_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """Make each output a value of its own, and call it so where nothing else has the name."""
    made: set[int] = set()
    for place, value in enumerate(graph.outputs):
        if value.producer() is None or id(value) in made:
            node = ir.node("Identity", [value], outputs=[ir.Value(shape=value.shape, type=value.type)])
            graph.append(node)
            graph.outputs[place] = node.outputs[0]
        made.add(id(graph.outputs[place]))
    taken = {value.name for value in graph.inputs} | set(graph.initializers)
    taken |= {value.name for node in graph.all_nodes() for value in node.outputs}
    if len(names) == len(graph.outputs):
        for value, name in zip(graph.outputs, names, strict=True):
            if name not in taken:
                value.name = name
                taken.add(name)


def tidy(model: ir.Model, parameters: Collection[str]) -> None:
    """Fold what depends on none of the `parameters`, and take off notes; those on modules stay."""
    InlinePass()(model)
    fold_constants(model)
    fold_nodes(model, should_fold=lambda node: False if _reads(node, parameters) else None)
    fold_constants(model)
    merge_padding(model)
    RemoveUnusedNodesPass()(model)
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.metadata_props.clear()
    for value in (*_values(model), *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(SCOPES)
        node.metadata_props.clear()
        node.meta.clear()  # it holds the nodes of torch
        if scopes is not None:
            node.metadata_props[SCOPES] = scopes


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        for node in graph:
            yield from node.outputs


def _renamed(dim: int | ir.SymbolicDim, names: Mapping[str, int | str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    if dim.value in names:
        return names[dim.value]
    return re.sub(r"\w+", lambda found: str(names.get(found[0], found[0])), dim.value)


def _reads(node: ir.Node, names: Collection[str]) -> bool:
    return any(value is not None and is_constant(value) and origin(value).name in names for value in node.inputs)
