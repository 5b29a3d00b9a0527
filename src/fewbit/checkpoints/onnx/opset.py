"""Raise the operator set of a graph to one that has the types and blocks of its new nodes.

Where no operator in use has changed, only the number does; else onnx's converter rewrites a copy without weights, which
then gets them back (its limit is 2 GiB).
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from fewbit.errors import CheckpointError
from fewbit.onnx_graph.constants import is_constant

#: Bytes up to which the converter is given a constant: it reads axes and shapes.
_SMALL = 1024


def upgraded(model: ir.Model, opset: int) -> ir.Model:
    """Return `model`, or another one with its weights, with at least `opset`.

    Raises:
        CheckpointError: an operator in use cannot be converted.

    """
    old = model.graph.opset_imports.get("", 1)
    if old < opset:
        model = _renumbered(model, opset) if _unchanged(model, old, opset) else _converted(model, opset)
    version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", model.graph.opset_imports[""])])
    model.ir_version = max(model.ir_version, version)
    return model


def _unchanged(model: ir.Model, old: int, new: int) -> bool:
    """Whether every operator in use means the same in both sets: the same inputs, outputs, attributes and defaults."""
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    nodes = (node for part in parts for node in ir.traversal.RecursiveGraphIterator(part))
    used = {node.op_type for node in nodes if not node.domain}
    return all(_signature(name, old) == _signature(name, new) for name in used)


def _signature(name: str, opset: int) -> object:
    try:
        schema = onnx.defs.get_schema(name, opset, "")
    except onnx.defs.SchemaError:
        return None
    sides = [[(part.name, str(part.option)) for part in side] for side in (schema.inputs, schema.outputs)]
    return sides, sorted((key, own.required, str(own.default_value)) for key, own in schema.attributes.items())


def _renumbered(model: ir.Model, opset: int) -> ir.Model:
    model.graph.opset_imports[""] = opset
    for function in model.functions.values():
        function.opset_imports[""] = opset
    return model


def _converted(model: ir.Model, opset: int) -> ir.Model:
    old = model.graph.opset_imports.get("", 1)
    what = f"operator set {opset}, which these schemes need, from {old}"
    if model.functions:
        raise CheckpointError(f"cannot get to {what}: the model holds functions; inline them, or export it again")
    bare = model.clone()
    kept = [_taken_out(graph) for graph in bare.graphs()]
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(bare), opset)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise CheckpointError(f"cannot get to {what}: {reason}; export the model with a newer set") from error
    made = ir.from_proto(proto)
    for graph, tensors in zip(made.graphs(), kept, strict=True):
        for name, tensor in tensors.items():
            graph.initializers[name].const_value = tensor
    return made


def _taken_out(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Put references to no file in the place of large constants; return what they were."""
    kept = {}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _SMALL and is_constant(value):
            kept[name] = tensor
            value.const_value = ir.ExternalTensor("", 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name)  # type: ignore[arg-type]
    return kept
