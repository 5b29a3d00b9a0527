"""The ONNX front end behind the `Frontend` contract: `OnnxModel`, NumPy arrays, onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.activation import Activation
from fewbit.corrections import Repaired
from fewbit.errors import PlanError, RecipeError
from fewbit.float_bias import FloatBias
from fewbit.frontends.onnx.batches import Numbers, feeds_of, inputs_of
from fewbit.frontends.onnx.calibration import CalibrationRun, gather
from fewbit.frontends.onnx.channel_splitting import split_channels
from fewbit.frontends.onnx.execution import execution
from fewbit.frontends.onnx.finite import finite_bias, finite_weight
from fewbit.frontends.onnx.known_inputs import known_inputs
from fewbit.frontends.onnx.link_scope import LinkScope
from fewbit.frontends.onnx.magnitudes import largest_activations, largest_weight, value_extremes
from fewbit.frontends.onnx.norm_folding import fold_norms, norms_stay
from fewbit.frontends.onnx.norm_statistics import reestimate_norms
from fewbit.frontends.onnx.probe import Probe
from fewbit.frontends.onnx.problems import problems
from fewbit.frontends.onnx.products import OnnxProductForms, product_forms, product_problems, product_statistics
from fewbit.frontends.onnx.ready import ready
from fewbit.frontends.onnx.relu6 import replace_relu6
from fewbit.frontends.onnx.replacement import OnnxReplacement
from fewbit.frontends.onnx.stored import require_numbers, stored_tensors, written_tensors
from fewbit.frontends.onnx.stream_rotation import MatrixOf, rotate
from fewbit.frontends.onnx.trial_run import tried
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces import Activations, Execution, Layer, QuantizedLayer, StoredTensor, Watch
from fewbit.known_output import KnownOutput
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.attention import find_products
from fewbit.onnx_graph.live import OnnxModel, Rounded
from fewbit.qtensor import QTensor
from fewbit.samples.model_input import ModelInput
from fewbit.schemes.scheme import ScaleType, Scheme
from fewbit.statistics.mean import Mean
from fewbit.transforms import Applied
from fewbit.transforms.outlier_splitting import Split
from fewbit.transforms.scope import Scope

#: Operators that say that numbers were quantized before.
_QUANTIZED = ("DequantizeLinear", "MatMulNBits", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv")


class OnnxFrontend:
    """Layers, data and replacements of a graph."""

    trains = divides = False
    simulates = True

    def __init__(self) -> None:
        self._probe: Probe | None = None

    def layers(self, model: OnnxModel) -> list[Layer]:
        """Return the quantizable layers in the order of the graph.

        Raises:
            PlanError: the graph holds quantized layers already.

        """
        found = [node for node in model.graph.graph.all_nodes() if node.op_type in _QUANTIZED]
        if found or model.layers:
            what = f"{len(found)} {found[0].op_type}" if found else f"{len(model.layers)} quantized layers"
            raise PlanError(f"{model.path} is quantized already: it holds {what}; start from the float model")
        return [own.layer for own in model.found.values()]

    def floats(self, model: OnnxModel) -> list[StoredTensor]:
        """Return every constant of the graph, one that several layers read under the first of their names."""
        return stored_tensors(model)

    def weight(self, model: OnnxModel, layer: Layer) -> Numbers:
        """Return the weight of `layer` as float32 (out, in).

        Raises:
            NonFiniteError: it holds NaN or infinity.

        """
        return finite_weight(model.found[layer.name])

    def bias(self, model: OnnxModel, layer: Layer) -> Numbers:
        """Return the bias of a `layer` that has one, float32 (out,).

        Raises:
            NonFiniteError: it holds NaN or infinity.

        """
        return finite_bias(model.found[layer.name])

    def largest_weight(self, model: OnnxModel, layer: Layer) -> float | None:
        """Return the largest magnitude of the weight of `layer`."""
        return largest_weight(model.found[layer.name])

    def largest_activations(
        self, model: OnnxModel, layers: Sequence[Layer], batches: Sequence[Any]
    ) -> Mapping[str, tuple[float, float]]:
        """Return the largest magnitudes of the float inputs and outputs of `layers`, but inside of branches."""
        return largest_activations(model, [layer.name for layer in layers], batches)

    def replacement(
        self,
        model: OnnxModel,
        layer: Layer,
        qtensor: QTensor,
        activations: Activations | None = None,
        bias: IntegerBias | FloatBias | None = None,
    ) -> OnnxReplacement:
        """Return the quantized form of `layer`, not yet installed; without `bias` it keeps the one that it has."""
        rounded = Rounded(qtensor=qtensor, activations=activations or Activations(), bias=bias)
        return OnnxReplacement(model, layer, rounded)

    def execution(self, model: OnnxModel, layer: Layer, weight: Scheme, rounded: Scheme | None) -> Execution:  # noqa: ARG002
        """Return what `layer` would run on."""
        return execution(layer)

    def experts_apart(self, model: OnnxModel, batch: Callable[[], Any]) -> AbstractContextManager[Sequence[str]]:  # noqa: ARG002
        """Do nothing: a node multiplies by one matrix."""
        return nullcontext(())

    def products(self, model: OnnxModel, batch: Any | None) -> list[Layer]:  # noqa: ARG002
        """Return the products inside attention, which the graph shows without a run."""
        return [own.layer for own in find_products(model.graph)]

    def shared_inputs(self, model: OnnxModel, layers: Sequence[Layer], batch: Any) -> list[tuple[str, ...]]:  # noqa: ARG002
        """Return which `layers` read the same value of the graph, together."""
        alike: dict[ir.Value, list[str]] = {}
        for layer in layers:
            alike.setdefault(model.found[layer.name].data, []).append(layer.name)
        return [tuple(names) for names in alike.values() if len(names) > 1]

    def product_problems(self, model: OnnxModel, wanted: Sequence[tuple[Layer, Scheme]]) -> Sequence[str]:
        """Return what a graph cannot do with its products."""
        return product_problems(model, wanted)

    def problems(self, model: OnnxModel, wanted: Sequence[tuple[QuantizedLayer, Sequence[str]]]) -> Sequence[str]:
        """Return what a graph cannot do of what is asked for."""
        return problems(model, wanted)

    def tensors(self, model: OnnxModel, storage_type: ScaleType) -> Iterator[tuple[str, Any]]:
        """Return what a checkpoint stores: arrays by full name; QTensors, static inputs and int32 biases by layer."""
        return written_tensors(model, storage_type)

    def require_finite(
        self,
        model: OnnxModel,
        layers: Sequence[Layer],
        names: Collection[str],
        storage_type: ScaleType,  # noqa: ARG002
    ) -> None:
        """Raise `NonFiniteError`, with its name, for numbers of `layers` that are not finite or a constant with NaN.

        Infinity masks attention in many a graph, and constants keep their type.
        """
        for layer in layers:
            self.weight(model, layer)
            if layer.bias:
                self.bias(model, layer)
        require_numbers(model, names)

    def round_floats(self, model: OnnxModel, names: Collection[str], storage_type: ScaleType) -> int:  # noqa: ARG002
        """Return 0: what stays float in a graph keeps the type that it has there."""
        return 0

    def fold_norms(self, model: OnnxModel, batch: Any, folded: Callable[..., tuple[Numbers, Numbers]]) -> Applied:
        """Fold every BatchNorm that can be folded; without a `batch` outputs are compared on random inputs."""
        return tried(model, batch, partial(fold_norms, model, folded=folded), norms_stay(model))

    def replace_relu6(self, model: OnnxModel, batch: Any) -> Applied:
        """Put Relu where Clip cuts at 0 and a number, and say how far that takes the output on `batch`."""
        return tried(model, batch, partial(replace_relu6, model), "no ReLU6 was replaced")

    def known_inputs(
        self, model: OnnxModel, names: Sequence[str], outputs: Mapping[str, KnownOutput], batch: Any
    ) -> Mapping[str, Mean]:
        """Return the means of the rows of layers that BatchNorms tell; of a `batch` only the shapes count."""
        return known_inputs(model, names, outputs, batch)

    def reestimate_norms(self, model: OnnxModel, batches: Sequence[Any], storage_type: ScaleType) -> Repaired:  # noqa: ARG002
        """Return what BatchNorms have seen of `batches` in the model as it is now; numbers keep their type."""
        return reestimate_norms(model, batches)

    def rotate(self, model: OnnxModel, batch: Any, matrix: MatrixOf, *, heads: bool) -> Applied:
        """Rotate the residual stream, and values inside heads if asked."""
        return tried(model, batch, partial(rotate, model, matrix=matrix, heads=heads), "rotation: nothing was rotated")

    def split_channels(self, model: OnnxModel, batch: Any, split: Split, *, gather: bool) -> Applied:
        """Split channels of what linear layers read, by `gather` also where nothing before them can get wider."""
        return tried(model, batch, partial(split_channels, model, split=split, gather=gather), "no channel was split")

    def calibrate(
        self,
        model: OnnxModel,
        layers: Sequence[Layer],
        wanted: Mapping[str, Sequence[str]],
        batches: Sequence[Any],
        *,
        sequential: bool,
        prepare: Callable[[Scope], None] | None = None,
        **asked: Any,  # noqa: ARG002  # nothing is trained, as the plan says, and all batches are one part
    ) -> CalibrationRun:
        """Return a run of `batches`, in order each layer behind quantized ones; `prepare` is given the float graph."""
        if prepare is not None:
            prepare(LinkScope(model, layers, batches))
        return CalibrationRun(model, layers, wanted, batches, sequential=sequential)

    def output_statistics(
        self, model: OnnxModel, wanted: Mapping[str, str], batches: Sequence[Any]
    ) -> Mapping[str, Any]:
        """Return the statistic that is `wanted` of the output of each layer, in the form that is installed."""
        results = {name: model.found[name].result.name or "" for name in wanted}
        spatial = {results[name] for name in wanted if isinstance(model.found[name].arrangement, Kernel)}
        found = gather(
            model,
            {results[name]: statistic for name, statistic in wanted.items()},
            batches,
            lambda name, numbers: np.moveaxis(numbers, 1, -1) if name in spatial else numbers,
        )
        return {name: found[result] for name, result in results.items() if result in found}

    def value_statistics(
        self, model: OnnxModel, wanted: Mapping[str, str], batches: Sequence[Any]
    ) -> Mapping[str, Any]:
        """Return the statistic that is `wanted` of all numbers of each value, by its name; of none is an error."""
        return gather(model, wanted, batches, lambda _, numbers: numbers.reshape(-1, 1))

    def value_extremes(self, model: OnnxModel, batches: Sequence[Any]) -> Mapping[str, tuple[float, float]]:
        """Return the least and the largest finite number of each value of the main graph."""
        return value_extremes(model, batches)

    def product_statistics(
        self, model: OnnxModel, products: Sequence[Layer], wanted: Mapping[str, str], batches: Sequence[Any]
    ) -> Mapping[str, Mapping[str, Any]]:
        """Return by operand the statistic that is `wanted` of each product inside attention."""
        return product_statistics(model, products, wanted, batches)

    def product_forms(
        self, model: OnnxModel, products: Sequence[Layer], activations: Mapping[str, Mapping[str, Activation]]
    ) -> list[OnnxProductForms]:
        """Return the rounded forms of the products that have `activations`, by operand; none is installed yet."""
        return product_forms(model, products, activations)

    def graph(self, model: OnnxModel, batch: Any) -> OnnxModel:  # noqa: ARG002
        """Return `model`."""
        return model

    def fed(self, batch: Any) -> Any:
        """Return `batch`."""
        return batch

    def place(self, model: Any, device: str) -> Any:
        """Return the model, on the CPU; raises `RecipeError` for another device."""
        if device != "cpu":
            raise RecipeError(f"device {device!r} cannot be used: ONNX models run on the CPU in this version")
        return model

    def inputs(self, model: OnnxModel) -> list[ModelInput]:
        """Return the inputs of the graph, with the types and shapes that it declares."""
        return inputs_of(model.graph.graph)

    def adopted(self, model: OnnxModel, batch: Any) -> Any:  # noqa: ARG002
        """Return `batch`."""
        return batch

    def run(self, model: OnnxModel, batch: Any) -> dict[str, Numbers]:
        """Return the outputs of `model` by name for a batch: a dict of arrays, a tuple of them, or one array."""
        feeds = feeds_of(model.graph.graph, batch)
        if self._probe is not None:
            self._probe.watch(model, feeds)
        return ready(model).run(feeds)

    @contextmanager
    def probe(self, forms: Sequence[Any], watch: Watch | None = None) -> Iterator[Mapping[str, float]]:
        """Watch float runs; afterwards the mapping holds each layer's output SQNR in dB."""
        ratios: dict[str, float] = {}
        self._probe = watching = Probe(forms, watch)
        try:
            yield ratios
        finally:
            self._probe = None
        ratios.update(watching.ratios())
