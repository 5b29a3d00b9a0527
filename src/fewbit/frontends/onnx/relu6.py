"""Put Relu where a graph cuts at 0 and a number above, in a copy of the graph."""

from __future__ import annotations

import onnx_ir as ir

from fewbit.frontends.onnx.constant import numbers_of
from fewbit.frontends.onnx.output_change import output_change
from fewbit.frontends.onnx.trial_run import TrialRun
from fewbit.onnx_graph.constants import is_constant
from fewbit.onnx_graph.live import OnnxModel
from fewbit.transforms import Applied
from fewbit.transforms.relu6 import NO_RELU6, replaced_sentence


def replace_relu6(model: OnnxModel, run: TrialRun) -> Applied:
    """Replace every Clip from 0 to a number."""
    before = model.graph, model.found
    graph, _ = model.copy()
    clips = [node for node in graph.graph.all_nodes() if _is_relu6(node)]
    if not clips:
        return Applied(sentences=(NO_RELU6,))
    expected = run(model)
    for node in clips:
        node.op_type = "Relu"
        node.attributes.clear()
        node.resize_inputs(1)
    again = OnnxModel.of(graph, model.path)
    model.graph, model.found = again.graph, again.found

    def restore() -> None:
        model.graph, model.found = before

    change = output_change(expected, run(model))
    return Applied(sentences=(replaced_sentence(len(clips), change),), restore=restore)


def _is_relu6(node: ir.Node) -> bool:
    low, high = clip_bounds(node)
    return low == 0.0 and high is not None and high < float("inf")


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Return where a Clip cuts, minus infinity and infinity where it does not; `None`: not known, or no Clip."""
    if node.op_type != "Clip" or node.domain not in ("", "ai.onnx"):
        return None, None
    if "min" in node.attributes or "max" in node.attributes:  # before version 11
        found = [node.attributes[name].as_float() if name in node.attributes else None for name in ("min", "max")]
        return found[0] if found[0] is not None else -float("inf"), found[1] if found[1] is not None else float("inf")
    bounds: list[float | None] = []
    for place, open_end in ((1, -float("inf")), (2, float("inf"))):
        value = node.inputs[place] if len(node.inputs) > place else None
        known = value is None or (is_constant(value) and numbers_of(value).size == 1)
        bounds.append(None if not known else open_end if value is None else float(numbers_of(value).reshape(())))
    return bounds[0], bounds[1]
