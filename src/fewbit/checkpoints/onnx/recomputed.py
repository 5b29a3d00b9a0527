"""Put nodes back that were computed when the graph was read, where the file would hold the same numbers twice or wider.

A head that shares the table of an embedding is MatMul(x, Transpose(table)); a float16 weight under a Cast is half as
large as what is computed from it.
"""

from __future__ import annotations

from collections import defaultdict

import onnx_ir as ir

from fewbit.checkpoints.onnx.draft import Draft
from fewbit.onnx_graph.constants import Computed, origin


def put_back(draft: Draft) -> None:
    """Replace computed constants by their origin and the nodes that compute them, where that makes the file smaller."""
    stored: dict[int, ir.Value] = {}
    computed: dict[int, list[ir.Value]] = defaultdict(list)
    for graph in draft.model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, Computed):
                computed[id(origin(value))].append(value)
            elif graph is draft.model.graph:  # what every graph inside sees
                stored.setdefault(id(value.const_value), value)
    for key, values in computed.items():
        first = origin(values[0])
        if key in stored or sum(_nbytes(value) for value in values) > first.nbytes:
            source = stored.get(key) or draft.constant_of(first.name or "constant", first)
            for value in values:
                _recompute(draft, value, source)


def _nbytes(value: ir.Value) -> int:
    return value.const_value.nbytes if value.const_value is not None else 0


def _recompute(draft: Draft, value: ir.Value, source: ir.Value) -> None:
    """Let nodes compute `value` from `source` when the model is loaded."""
    steps, tensor = [], value.const_value
    while isinstance(tensor, Computed):
        steps.append(tensor.node)
        tensor = tensor.source
    graph, name, nodes, last = value.graph, str(value.name), [], source
    assert isinstance(graph, ir.Graph)
    for step in reversed(steps):
        nodes.append(ir.node(step.op_type, [last], dict(step.attributes)))
        last = nodes[-1].outputs[0]
        last.name = draft.fresh(f"{name}/{step.op_type}")
        draft.values[last.name] = last
    graph.insert_before(next(iter(graph)), nodes)
    value.replace_all_uses_with(last)
    del graph.initializers[name]
