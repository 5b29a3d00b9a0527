"""What onnxruntime makes of a written file: which layers run in integers, which stayed float, and why.

The file is optimized as a session does by default; in the graph that results, the codes of a layer tell what reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime

from fewbit.checkpoints.onnx.draft import CODES
from fewbit.checkpoints.onnx.products import INTEGERS, is_made_of
from fewbit.checkpoints.onnx.rounding import absorbs
from fewbit.checkpoints.onnx.writer import described
from fewbit.errors import CheckpointError
from fewbit.interfaces import QuantizedLayer
from fewbit.onnx_graph.attention import find_products
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.limits import limits_of
from fewbit.onnx_graph.live import OnnxModel
from fewbit.runtimes.form import form_of
from fewbit.runtimes.runtime import Runtime
from fewbit.schemes.granularity import PerGroup

#: Operators that make floats of codes; a layer whose codes they read is computed in float.
_BACK = ("DequantizeLinear", "Cast")
#: Bytes from which constants stay out of the optimized file.
_SMALL = "1024"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """What runs, by layer and by operator."""

    #: The operator that reads the codes of each layer that runs in integers, or packed.
    integers: dict[str, str]
    #: Why each other quantized layer is computed in float.
    floats: dict[str, str]
    #: Those of them that should run in integers.
    missed: tuple[str, ...]
    #: How many nodes there are of each operator that reads codes, and of each that reads floats.
    integer_nodes: dict[str, int]
    float_nodes: dict[str, int]

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each layer that should run in integers and does not."""
        return tuple(f"{name} stayed float: {self.floats[name]}" for name in self.missed)


def fusion(model: OnnxModel, runtime: Runtime, path: str | Path) -> Fusion:
    """Return what onnxruntime makes of the file at `path`, written from `model` for `runtime`.

    Raises:
        CheckpointError: onnxruntime does not load it.

    """
    graph = optimized(Path(path))
    readers = dict(_readers(graph, set(model.layers)))
    integers = {name: readers[name] for name in model.layers if readers.get(name, _BACK[0]) not in _BACK}
    floats = {name: _reason(model, runtime, name) for name in model.layers if name not in integers}
    missed = [name for name in floats if _expected(runtime, described(model, name))]
    integers |= dict(_products(model, graph))
    for name in [name for name in model.products if name not in integers]:
        floats[name] = _product_reason(model, runtime, name)
        missed += [name] if runtime.multiplies_in_integers(next(iter(model.products[name].values())).scheme) else []
    integer_nodes, float_nodes = _counted(graph)
    return Fusion(
        integers=integers,
        floats=floats,
        missed=tuple(missed),
        integer_nodes=integer_nodes,
        float_nodes=float_nodes,
    )


def optimized(path: Path) -> onnx.GraphProto:
    """Return the graph that onnxruntime makes of a file; raises `CheckpointError` where it does not load it."""
    with TemporaryDirectory(prefix="fewbit-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns that the file is for this machine
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", _SMALL)
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no base of their own
            raise CheckpointError(f"onnxruntime {onnxruntime.__version__} does not load {path}: {error}") from error
        return onnx.load(options.optimized_model_filepath, load_external_data=False).graph


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _readers(graph: onnx.GraphProto, names: set[str]) -> Iterator[tuple[str, str]]:
    """Yield layers with the operator that reads their codes; onnxruntime may put a word behind a name."""
    for part in _graphs(graph):
        for node in part.node:
            for value in node.input:
                name, found, _ = value.rpartition(CODES)
                if found and name in names:
                    yield name, node.op_type


def _products(model: OnnxModel, graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """Yield the rounded products inside attention that run in integers, with the operator that computes them."""
    nodes = [node for part in _graphs(graph) for node in part.node if node.op_type in INTEGERS]
    for own in find_products(model.graph) if model.products else ():
        found = [node.op_type for node in nodes if is_made_of(own, node)]
        if own.layer.name in model.products and found:
            yield own.layer.name, found[0]


def _product_reason(model: OnnxModel, runtime: Runtime, name: str) -> str:
    scheme = next(iter(model.products[name].values())).scheme
    if not runtime.multiplies_in_integers(scheme):
        return f"onnxruntime computes with {scheme.format.name} inputs in float"
    return "onnxruntime did not fuse it"


def _counted(graph: onnx.GraphProto) -> tuple[dict[str, int], dict[str, int]]:
    """Return how many nodes read codes, and how many do not, by operator; Q and DQ are neither."""
    integers: Counter[str] = Counter()
    floats: Counter[str] = Counter()
    for part in _graphs(graph):
        codes = {tensor.name for tensor in part.initializer if tensor.data_type in _CODE_TYPES}
        for node in part.node:
            if node.op_type == "QuantizeLinear":
                codes.update(node.output)
            elif node.op_type != "DequantizeLinear":
                reads = not codes.isdisjoint(node.input) or node.op_type == "DynamicQuantizeLinear"
                (integers if reads else floats)[node.op_type] += 1
                if reads and _gives_codes(node):
                    # Beside the codes of a rounding stand its scale and its zero point.
                    codes.update(node.output[:1] if node.op_type == "DynamicQuantizeLinear" else node.output)
    return dict(integers), dict(floats)


def _gives_codes(node: onnx.NodeProto) -> bool:
    """Whether an operator that reads codes gives codes: all but products that end in float or int32."""
    if node.op_type == "QGemm":
        return len(node.input) > 7 and bool(node.input[7])
    return node.op_type not in _TO_FLOAT


def _expected(runtime: Runtime, quantized: QuantizedLayer) -> bool:
    form = form_of(quantized, runtime)
    return runtime.computes_in_integers(quantized) if form == "QDQ" else form not in ("DequantizeLinear", "Cast")


def _reason(model: OnnxModel, runtime: Runtime, name: str) -> str:
    """Return why a layer is computed in float."""
    quantized, own = described(model, name), model.found[name]
    if not quantized.scheme.scaled:
        return f"its numbers are {quantized.scheme}"
    if quantized.input is None:
        return f"its weight '{quantized.scheme}' is dequantized whenever it is used"
    if own.node.op_type not in runtime.products:
        return f"onnxruntime has no integer {own.node.op_type}"
    if isinstance(quantized.scheme.granularity, PerGroup):
        return f"integer products take a scale for a tensor or a channel, and its weight is '{quantized.scheme}'"
    if not runtime.computes_in_integers(quantized):
        return f"onnxruntime computes with {quantized.input.format.name} inputs in float"
    return _missing(model, runtime, own) or f"onnxruntime did not fuse node {own.node.name or own.output.name!r}"


def _missing(model: OnnxModel, runtime: Runtime, own: GraphLayer) -> str | None:
    """Return what a layer lacks that is to run in integers."""
    result = own.result
    rounded = model.layers[own.layer.name].activations.output or model.values.get(str(result.name))
    behind = next((node for node, _ in result.uses() if limits_of(node)), None)
    if rounded is None and behind is not None and len(result.uses()) == 1:
        rounded = model.values.get(str(behind.outputs[0].name))
        if rounded is not None and not absorbs(rounded, behind, runtime):
            zero = 0 if rounded.zero_point is None else int(rounded.zero_point)
            return (
                f"behind its {behind.op_type} the code {zero} stands for 0, which is not the lowest; "
                "round it by 'int8 static', asymmetric"
            )
    needed = runtime.products_with_output | (runtime.products_with_activation if behind is not None else frozenset())
    if rounded is None and own.node.op_type in needed:
        return f"its output {str((behind.outputs[0] if behind else result).name)!r} is not rounded; round it too"
    return None


#: Types of codes.
_CODE_TYPES = frozenset(
    onnx.TensorProto.DataType.Value(name)
    for name in ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "INT16", "UINT16", "FLOAT8E4M3FN", "FLOAT8E5M2")
)
#: Products of codes that give floats, or sums in int32.
_TO_FLOAT = frozenset(
    {
        "Cast", "ConvInteger", "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulInteger", "MatMulIntegerToFloat",
        "MatMulNBits",
    }
)  # fmt: skip
