"""Write a quantized model as an ONNX file for a runtime, in the forms that this one computes with few bits.

Roundings of values first, then each layer in its form; what stays float stays as it was, and no larger.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fewbit.activation import Activation
from fewbit.checkpoints.onnx.bias import put_rounded
from fewbit.checkpoints.onnx.cast import write_cast
from fewbit.checkpoints.onnx.draft import Draft, values_of
from fewbit.checkpoints.onnx.dynamic import write_dynamic
from fewbit.checkpoints.onnx.element_type import AXIS, BLOCKS, CASTS, HALF_SCALES, element_type
from fewbit.checkpoints.onnx.opset import upgraded
from fewbit.checkpoints.onnx.packed import write_gather, write_matmul
from fewbit.checkpoints.onnx.products import write_product
from fewbit.checkpoints.onnx.recomputed import put_back
from fewbit.checkpoints.onnx.rounding import round_value
from fewbit.checkpoints.onnx.static import write_static
from fewbit.checkpoints.onnx.weight_only import write_weight_only
from fewbit.errors import CheckpointError
from fewbit.formats.cast import Cast
from fewbit.interfaces import QuantizedLayer
from fewbit.onnx_graph.attention import find_products
from fewbit.onnx_graph.file import weight_bytes, write_model
from fewbit.onnx_graph.layers import GraphLayer, find_layers
from fewbit.onnx_graph.live import OnnxModel, Rounded
from fewbit.problems import several
from fewbit.runtimes.form import Form, form_of
from fewbit.runtimes.runtime import Runtime
from fewbit.schemes.granularity import PerGroup

_WRITERS: dict[Form, Callable[[Draft, GraphLayer, Rounded], str]] = {
    "QDQ": write_static,
    "dynamic": write_dynamic,
    "MatMulNBits": write_matmul,
    "GatherBlockQuantized": write_gather,
    "DequantizeLinear": write_weight_only,
    "Cast": write_cast,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a file holds."""

    path: Path
    #: The runtime that it is for.
    runtime: str
    opset: int
    #: What each quantized layer became, by its name.
    forms: dict[str, str]
    #: Values that are rounded between layers.
    values: tuple[str, ...]
    #: Bytes of all constants.
    nbytes: int
    #: What was done that nobody asked for, and what the reader of the file has to know.
    notes: tuple[str, ...]


def write(
    model: OnnxModel,
    runtime: Runtime,
    path: str | Path,
    *,
    overwrite: bool = False,
    unsigned: Collection[str] = (),
) -> Written:
    """Write `model` for `runtime` to `path`; weights of the layers `unsigned` are stored as uint8 where they are int8.

    Which ones those should be, and which weights should have 7 bits, is what `saturation_choice` finds.

    Raises:
        CheckpointError: a layer under schemes that the runtime does not take, scales that the file cannot hold, an
            operator that the new operator set lacks, or a path that exists or cannot be written.

    """
    draft, forms = drafted(model, runtime, unsigned)
    path = write_model(draft.model, path, overwrite=overwrite)
    return Written(
        path=path,
        runtime=runtime.name,
        opset=draft.model.graph.opset_imports[""],
        forms=forms,
        values=tuple(model.values),
        nbytes=weight_bytes(draft.model),
        notes=tuple(draft.notes),
    )


def drafted(model: OnnxModel, runtime: Runtime, unsigned: Collection[str]) -> tuple[Draft, dict[str, str]]:
    """Return the graph that is to be written, and what each layer became."""
    quantized = {name: described(model, name) for name in model.layers}
    _require_forms(model, quantized, runtime)
    draft = _draft(model, runtime, frozenset(unsigned), _opset(model, quantized, runtime))
    for value, activation in _roundings(model, draft).items():
        round_value(draft, draft.values[value], activation)
    forms = {}
    for name, rounded in model.layers.items():
        if rounded.bias is not None:
            put_rounded(draft, draft.layers[name], rounded.bias)
        forms[name] = _WRITERS[form_of(quantized[name], runtime)](draft, draft.layers[name], rounded)
    for name, operands in model.products.items():
        forms[name] = write_product(draft, draft.products[name], operands)
    _clean(draft.model)
    put_back(draft)
    draft.notes += [*_grown_notes(draft.grown), *_level_notes(forms)]
    return draft, forms


def _require_forms(model: OnnxModel, quantized: Mapping[str, QuantizedLayer], runtime: Runtime) -> None:
    """Raise `CheckpointError` for what `runtime` has no form for."""
    problems = {name: runtime.problem(own) for name, own in quantized.items()}
    for name, operands in model.products.items():
        problems |= {f"{name}.{operand}": runtime.product_problem(own.scheme) for operand, own in operands.items()}
    for name, problem in problems.items():
        if problem:
            raise CheckpointError(f"{name}: {problem}")


def described(model: OnnxModel, name: str) -> QuantizedLayer:
    """Return a quantized layer of `model` with its schemes."""
    rounded = model.layers[name]
    given, made = rounded.activations.input, rounded.activations.output
    schemes = given.scheme if given is not None else None, made.scheme if made is not None else None
    return QuantizedLayer(model.found[name].layer, rounded.qtensor.scheme, *schemes)


def _draft(model: OnnxModel, runtime: Runtime, unsigned: frozenset[str], opset: int) -> Draft:
    graph = upgraded(model.graph.clone(), opset)
    # The converter of operator sets keeps the names of values and forgets those of modules.
    found = {str(own.output.name): own for own in find_layers(graph)}
    layers = {name: replace(found[str(own.output.name)], layer=own.layer) for name, own in model.found.items()}
    weights = [model.found[name].weight.dtype for name in model.layers]
    outputs = {str(own.output.name): own.layer.name for own in find_products(model.graph)} if model.products else {}
    made = {outputs[str(own.output.name)]: own for own in (find_products(graph) if outputs else ())}
    products = {name: replace(made[name], layer=replace(made[name].layer, name=name)) for name in model.products}
    dtype = next((kind for kind in weights if kind is not None), ir.DataType.FLOAT)
    return Draft(graph, layers, products, runtime, dtype, values_of(graph), unsigned=unsigned)


def _roundings(model: OnnxModel, draft: Draft) -> dict[str, Activation]:
    """Return how values are rounded, by name in the order of the graph: as outputs of layers, or for their own sake."""
    lost = [name for name in model.values if name not in draft.values]
    if lost:
        raise CheckpointError(f"the graph of {model.path} has no value {lost[0]!r} to round; leave it out of `values`")
    outputs = {
        str(draft.layers[name].result.name): rounded.activations.output
        for name, rounded in model.layers.items()
        if rounded.activations.output is not None and rounded.activations.output.scheme.scaled
    }
    rounded = {**model.values, **outputs}
    return {name: rounded[name] for name in draft.values if name in rounded}


def _opset(model: OnnxModel, quantized: Mapping[str, QuantizedLayer], runtime: Runtime) -> int:
    """Return the operator set that the new nodes need; 1: none of a set that is numbered."""
    needed = [1]
    for name, own in quantized.items():
        form, weight = form_of(own, runtime), model.found[name].weight.const_value
        if form in ("QDQ", "DequantizeLinear"):
            blocks = isinstance(own.scheme.granularity, PerGroup) and model.layers[name].qtensor.scale.shape[1] > 1
            whole = form == "QDQ" and not isinstance(own.scheme.granularity, PerGroup)
            needed += [AXIS, BLOCKS if blocks else AXIS]
            needed.append(element_type(own.scheme.format, whole_bytes=whole).opset)
            needed.append(HALF_SCALES if weight.dtype != ir.DataType.FLOAT else AXIS)  # type: ignore[union-attr]
        elif isinstance(own.scheme.format, Cast):
            needed.append(CASTS[own.scheme.format.dtype])
        elif form == "dynamic":
            needed.append(AXIS)
    given = [own.input for own in quantized.values()] + [own.output for own in quantized.values()]
    given += [activation.scheme for activation in model.values.values()]
    operands = [own.scheme for rounded in model.products.values() for own in rounded.values()]
    needed += [element_type(own.format).opset for own in (*given, *operands) if own is not None and own.static]
    half = any(
        own.layer.name in model.products and own.dtype != ir.DataType.FLOAT for own in find_products(model.graph)
    )
    needed += [AXIS, HALF_SCALES if half else AXIS] if operands else []
    return max(needed)


def _clean(model: ir.Model) -> None:
    """Take out what nothing reads any more."""
    RemoveUnusedNodesPass()(model)
    for graph in model.graphs():
        for name in [name for name, value in graph.initializers.items() if not _is_read(value)]:
            del graph.initializers[name]


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_input() or value.is_graph_output()


def _grown_notes(grown: Mapping[str, float]) -> list[str]:
    if not grown:
        return []
    worst = max(grown, key=grown.__getitem__)
    return [
        f"{several(grown)}: scales of rows of next to nothing grew so that their biases fit int32, "
        f"by up to {grown[worst]:.3g} times in {worst}"
    ]


def _level_notes(forms: Mapping[str, str]) -> list[str]:
    rounding = [name for name, form in forms.items() if form.endswith("accuracy level 4")]
    if not rounding:
        return []
    return [
        f"{several(rounding)}: onnxruntime rounds their inputs to int8 by blocks (accuracy level 4); level 1 computes "
        "in float32, and is slower by far with 2 and 8 bits"
    ]
