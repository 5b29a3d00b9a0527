"""The contracts between fewbit's core and what surrounds it: layers, sources, front ends, checkpoint formats.

They are protocols and plain descriptions; implementations are found through the catalogues at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from fewbit.activation import Activation
from fewbit.catalogue import lookup
from fewbit.errors import NotYetError
from fewbit.float_bias import FloatBias
from fewbit.formats.cast import Cast
from fewbit.integer_bias import BiasType, IntegerBias
from fewbit.numerics.namespace import Array
from fewbit.qtensor import QTensor
from fewbit.samples.model_input import ModelInput
from fewbit.schemes.scheme import ScaleType, Scheme
from fewbit.transforms import Applied
from fewbit.transforms.scope import Scope

#: What a quantizable operation does; rules select by it.
LayerKind = Literal["linear", "conv", "embedding", "head", "attention"]
LAYER_KINDS: tuple[LayerKind, ...] = ("linear", "conv", "embedding", "head", "attention")

#: Bytes of one number of each stored type.
BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
FLOAT_TYPES = ("float64", "float32", "float16", "bfloat16")

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Layer:
    """One quantizable operation as a front end sees it; its weight is (out, in) however the framework stores it."""

    #: Dotted path inside the model, without `.weight`.
    name: str
    #: What it does.
    kind: LayerKind
    #: Shape of the weight as (out, in); of an embedding (rows, width), of a convolution (out, in / groups * positions);
    #: (0, 0) of a product inside attention, which has none.
    shape: tuple[int, int]
    #: Class in the framework, for people and for checkpoint formats that match by class.
    module_class: str
    #: Shape that the framework stores it in, where that is another: (in, out) of GPT-2's Conv1D, a convolution's.
    stored: tuple[int, ...] | None = None
    #: Whether its output is its input, taken apart into rows, times the weight: what statistics of rows are about.
    multiplies_rows: bool = True
    #: Groups of a convolution: how many parts of its input have outputs of their own, one after the other.
    groups: int = 1
    #: Names of the other layers that own the very same weight.
    tied: tuple[str, ...] = ()
    #: Whether a number is added to each output.
    bias: bool = False
    #: Of a product inside attention the names of what it multiplies.
    operands: tuple[str, ...] = ()
    #: The ONNX operator that it becomes in a graph; `None`: its class is one.
    exported_as: str | None = None

    @property
    def operator(self) -> str:
        """The ONNX operator that it is in a graph."""
        return self.exported_as or self.module_class


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a file will hold it, without its bytes."""

    #: Name in the file.
    name: str
    #: Key of `BYTES`.
    dtype: str
    #: Shape in the file.
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """A layer and the schemes that it gets, as a checkpoint format needs to know them."""

    layer: Layer
    #: Of its weight.
    scheme: Scheme
    #: Of what goes in and what comes out; `None`: it stays float.
    input: Scheme | None = None
    output: Scheme | None = None
    #: Of its bias; `float` where there is none.
    bias: BiasType = "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that a checkpoint will hold, known before its first byte is written."""

    #: Layers with quantized weights, in the model's order.
    quantized: tuple[QuantizedLayer, ...]
    #: Layers that keep float weights.
    kept: tuple[Layer, ...]
    #: Float tensors and buffers, among them kept weights and biases.
    floats: tuple[StoredTensor, ...]
    #: Type in which floats and scales are stored.
    storage_type: ScaleType
    #: The model's `config.json` as a dictionary; empty for a module of one's own.
    configuration: Mapping[str, Any] = field(default_factory=dict)
    #: Further files by plain name: tokenizer, report.
    files: Mapping[str, bytes] = field(default_factory=dict)


class Progress(Protocol):
    """Shows how far a phase has come."""

    def track(self, items: Sequence[Item], description: str) -> Iterator[Item]:
        """Yield `items`, showing the count done and the time left."""

    def phase(self, description: str) -> AbstractContextManager[object]:
        """Show `description` and the time it takes while the block runs: work whose length nobody knows."""


class Silent:
    """The progress that shows nothing."""

    def track(self, items: Sequence[Item], description: str) -> Iterator[Item]:  # noqa: ARG002
        """Yield `items`."""
        yield from items

    def phase(self, description: str) -> AbstractContextManager[object]:  # noqa: ARG002
        """Show nothing."""
        return nullcontext()


class Source(Protocol):
    """Where a model comes from."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def framework(self) -> str:
        """The front end that its models are for: a key of `FRONTENDS`."""

    @property
    def storage_type(self) -> ScaleType:
        """The type that the float numbers of its files have, or would have."""

    @property
    def computes_in(self) -> ScaleType:
        """The type that the float numbers of the loaded model have."""

    def skeleton(self) -> Any:
        """Return the model with shapes but, where that saves time, without numbers."""

    def load(self) -> Any:
        """Return the model, ready to run."""

    def configuration(self) -> Mapping[str, Any]:
        """Return the content of `config.json` without any `quantization_config`; empty if there is none."""

    def companions(self) -> Mapping[str, bytes]:
        """Return the files that belong beside the weights: tokenizer, generation settings."""

    def tokenizer(self) -> Any | None:
        """Return the tokenizer, or `None`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """How a layer's input and output are rounded; `None`: not at all."""

    input: Activation | None = None
    output: Activation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What a quantized layer runs on."""

    #: Name of the kernel.
    kernel: str
    #: Whether it is faster than the float layer.
    fast: bool
    #: Up to how many rows of inputs it is; `None`: however many.
    rows: int | None = None
    #: Why it is not, or no faster kernel computes the layer.
    why: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.fast:
            return f"{self.kernel}, faster for up to {self.rows} rows" if self.rows else self.kernel
        why = f": {'; '.join(self.why)}" if self.why else ""
        return f"{self.kernel}, not faster than float{why}"


class Switch(Protocol):
    """Something of a live model in its two forms; exactly one of them is installed."""

    def install(self) -> None:
        """Put the quantized form into the model."""

    def restore(self) -> None:
        """Put the float form back."""


class Forms(Switch, Protocol):
    """A layer of a live model in its two forms."""

    @property
    def layer(self) -> Layer:
        """Which layer."""


class Replacement(Forms, Protocol):
    """A layer with a weight in its two forms."""

    @property
    def qtensor(self) -> QTensor:
        """The quantized weight."""

    @property
    def integer_bias(self) -> IntegerBias | None:
        """Its bias in int32; `None`: it is float, or there is none."""

    def fix_output(self, activation: Activation) -> None:
        """Round the output of the quantized form by a range that is known now."""


class Trainable(Protocol):
    """A part of a model that runs with trial weights; its layers are quantized and installed."""

    @property
    def targets(self) -> Sequence[Array]:
        """What the float part puts out for each sample."""

    def forward(self, weights: Mapping[str, Array], sample: int) -> Array:
        """Return the output for a sample with these weights (out, in) by layer, differentiable in them."""


@dataclass(frozen=True, slots=True)
class CalibratedPart:
    """Layers to quantize together, and what calibration has seen of their inputs."""

    layers: tuple[Layer, ...]
    #: Statistics by name, by layer; nothing for a layer that needs none or that no input reached.
    statistics: Mapping[str, Mapping[str, Any]]
    #: For layers that are solved already: what they are trained in.
    block: Trainable | None = None
    #: Of such layers: why they cannot be trained, or not as asked.
    remarks: tuple[str, ...] = ()

    @property
    def again(self) -> bool:
        """Whether its layers are solved already, each for itself."""
        return self.block is not None or bool(self.remarks)


class CalibrationRun(Protocol):
    """The stages of a calibration, each an iterator of parts."""

    def __len__(self) -> int:
        """Return the number of stages."""

    def __iter__(self) -> Iterator[Iterator[CalibratedPart]]:
        """Yield the stages; quantize and install the layers of a part before asking for the next."""


class Frontend(Protocol):
    """What knows a framework."""

    @property
    def finds_links(self) -> bool:
        """Whether it can tell transforms what is linked, and calls `prepare` of a calibration."""

    @property
    def trains(self) -> bool:
        """Whether its models run with trial weights that gradients reach, as block reconstruction needs it."""

    def layers(self, model: Any) -> list[Layer]:
        """Return the quantizable layers in the order of the model."""

    def products(self, model: Any, batch: Any | None) -> list[Layer]:
        """Return the products inside attention that a run on `batch` shows; `None`: one that the model has itself."""

    def floats(self, model: Any) -> list[StoredTensor]:
        """Return every stored parameter and buffer, one that hangs at several places under its first name."""

    def weight(self, model: Any, layer: Layer) -> Array:
        """Return the weight of `layer` as (out, in) in the framework's own array type."""

    def bias(self, model: Any, layer: Layer) -> Array:
        """Return the bias of a `layer` that has one, (out,)."""

    def largest_weight(self, model: Any, layer: Layer) -> float | None:
        """Return the largest magnitude of the weight of `layer`; `None` of a model without numbers."""

    def largest_activations(
        self, model: Any, layers: Sequence[Layer], batches: Sequence[Any]
    ) -> Mapping[str, tuple[float, float]]:
        """Return the largest magnitudes of the float inputs and outputs of `layers`, of those that a batch reaches."""

    def replacement(
        self,
        model: Any,
        layer: Layer,
        qtensor: QTensor,
        activations: Activations | None = None,
        bias: IntegerBias | FloatBias | None = None,
    ) -> Replacement:
        """Return the quantized form of `layer`, not yet installed; without `bias` it keeps the one that it has."""

    def execution(self, model: Any, layer: Layer, weight: Scheme | None, rounded: Scheme | None) -> Execution:
        """Return what `layer` would run on with this weight and inputs rounded so."""

    def problems(self, model: Any, wanted: Sequence[tuple[QuantizedLayer, Sequence[str]]]) -> Sequence[str]:
        """Return what cannot be done, with the remedy; each layer comes with the statistics it asks of its input."""

    def product_problems(self, model: Any, wanted: Sequence[tuple[Layer, Scheme]]) -> Sequence[str]:
        """Return why operands of products inside attention cannot be rounded so, with the remedy."""

    def tensors(
        self, model: Any, storage_type: ScaleType
    ) -> Iterator[tuple[str, Array | QTensor | Activation | IntegerBias]]:
        """Yield what a checkpoint stores: NumPy arrays by full name, floats as `storage_type`; QTensors by layer.

        The rounding of a static input, an `Activation`, and a bias in int32 come by the name of their layer too.
        """

    def require_finite(
        self, model: Any, layers: Sequence[Layer], names: Collection[str], storage_type: ScaleType
    ) -> None:
        """Raise `NonFiniteError` for a weight or bias of `layers`, or a float tensor as stored, that is not finite."""

    def round_floats(self, model: Any, names: Collection[str], storage_type: ScaleType) -> int:
        """Round the float tensors called `names` to `storage_type` in place; return how many numbers changed."""

    def fold_norms(self, model: Any, batch: Any, folded: Callable[..., tuple[Array, Array]]) -> Applied:
        """Fold BatchNorms into the layers before them, where the model's output on `batch` stays the same."""

    def calibrate(
        self,
        model: Any,
        layers: Sequence[Layer],
        wanted: Mapping[str, Sequence[str]],
        batches: Sequence[Any],
        *,
        sequential: bool,
        prepare: Callable[[Scope], None] | None = None,
        trained: Collection[str] = (),
    ) -> CalibrationRun:
        """Return a run of `batches` through `model`; `wanted` names the statistics of each layer to be quantized.

        `prepare` is given each block, or a model without blocks, before its layers are measured. The `trained` layers
        come again once the block that they are in, or all that is in no block, is solved.
        """

    def output_statistics(self, model: Any, wanted: Mapping[str, str], batches: Sequence[Any]) -> Mapping[str, Any]:
        """Return the statistic that is `wanted` of the output of each layer, in the form that is installed."""

    def product_statistics(
        self, model: Any, products: Sequence[Layer], wanted: Mapping[str, str], batches: Sequence[Any]
    ) -> Mapping[str, Mapping[str, Any]]:
        """Return by operand the statistic that is `wanted` of each product inside attention."""

    def product_forms(
        self, model: Any, products: Sequence[Layer], activations: Mapping[str, Mapping[str, Activation]]
    ) -> Sequence[Forms]:
        """Return the rounded forms of those `products` that have `activations`, by operand; none is installed yet."""

    def graph(self, model: Any, batch: Any) -> Any:
        """Return the model as an `OnnxModel` with its quantized forms; others than graphs are run on `batch`."""

    def fed(self, batch: Any) -> Any:
        """Return a batch as that graph takes it: what is no array is part of the graph."""

    def place(self, model: Any, device: str) -> Any:
        """Return the model on `device`; raises `RecipeError` for a device that is not there."""

    def inputs(self, model: Any) -> Sequence[ModelInput] | None:
        """Return what `model` takes, where it declares that."""

    def adopted(self, model: Any, batch: Any) -> Any:
        """Return `batch` with NumPy arrays in it as what `model` runs on."""

    def run(self, model: Any, batch: Any) -> Any:
        """Return the output of `model` for a batch (an array, a tuple of arguments or a dict of them)."""

    def probe(self, replacements: Sequence[Forms]) -> AbstractContextManager[Mapping[str, float]]:
        """Watch float forwards; afterwards the mapping holds each layer's output SQNR in dB on its float inputs."""


class Writer(Protocol):
    """A checkpoint being written; it appears under its name only when closed."""

    def put(self, name: str, value: Array | QTensor | Activation | IntegerBias) -> None:
        """Write the next tensor: a float one by its full name, what belongs to a quantized layer by that one's."""

    def close(self) -> Path:
        """Finish, move into place, and return the path."""

    def abort(self) -> None:
        """Remove whatever was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was opened for reading."""

    path: Path
    #: `config.json` without `quantization_config`.
    configuration: Mapping[str, Any]
    #: Which layer has which scheme; shapes are the weights' own.
    schemes: Mapping[str, Scheme]
    #: How the inputs of layers are rounded; nothing for one whose input stays float.
    inputs: Mapping[str, Scheme] = field(default_factory=dict)
    #: What the file holds, by name in the file.
    stored: tuple[StoredTensor, ...]
    #: Reads the tensors: floats by full name, QTensors by layer name, each behind its static input.
    tensors: Callable[[], Iterable[tuple[str, Array | QTensor | Activation]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A result on its way into a file."""

    #: The live model with its quantized forms.
    model: Any
    frontend: Frontend
    manifest: Manifest
    #: What it was calibrated on, if anything.
    batches: Sequence[Any] = ()
    #: A batch to trace a module on; `None`: what it makes up.
    example: Any = None
    #: The type that the whole model is cast to; `None`: layers have schemes of their own.
    cast: Cast | None = None
    #: The report, or `None`.
    report: Any = None


class Target(Protocol):
    """What a plan is checked against and a result is written for: a layout of files, or a runtime of ONNX files."""

    @property
    def name(self) -> str:
        """The word for it in `to=`."""

    @property
    def keeps_layers(self) -> bool:
        """Whether its files hold every layer of the model as it was, so that none can be folded into another."""

    @property
    def holds_graph(self) -> bool:
        """Whether its files hold how the model computes: in which type, and a runtime instead of kernels runs it."""

    def fitted(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return what a preset gives a layer here instead: the nearest schemes that the target has a form for."""

    def problem(self, quantized: QuantizedLayer) -> str | None:
        """Return why it cannot hold a layer under its schemes, with the remedy, or `None`."""

    def product_problem(self, product: Layer, scheme: Scheme) -> str | None:
        """Return why it cannot hold that operands of a product inside attention are rounded so, or `None`."""

    def scale_type(self, storage_type: ScaleType) -> ScaleType:
        """Return the type in which it stores scales."""

    def tensors(self, quantized: QuantizedLayer, storage_type: ScaleType) -> tuple[StoredTensor, ...]:
        """Return what stands in the file for a quantized layer."""

    def between(self, model: Any, batches: Sequence[Any]) -> Switch | None:
        """Return what it rounds between the installed layers of `model`, ranged on `batches`; `None`: nothing."""

    def write(self, content: Content, path: Path, *, overwrite: bool = False) -> Path:
        """Write a result to `path`, complete or not at all, and return the path."""


class CheckpointFormat(Target, Protocol):
    """One on-disk layout of tensors by name, written as a stream and read back."""

    @property
    def name(self) -> str:
        """The word for it in `to=`, and the `quant_method` in the `config.json` of its folders."""

    def open(self, path: Path, manifest: Manifest, *, overwrite: bool = False) -> Writer:
        """Start writing a checkpoint that will hold exactly what `manifest` says."""

    def read(self, path: Path) -> Checkpoint:
        """Open the checkpoint at `path`."""


#: Checkpoint formats of the design that this version does not write.
CHECKPOINTS_LATER = ("awq", "gguf", "gptq")
#: Front ends by framework.
FRONTENDS = {
    "torch": "fewbit.frontends.torch.frontend:TorchFrontend",
    "onnx": "fewbit.frontends.onnx.frontend:OnnxFrontend",
}
#: Checkpoint formats by the word for them in `to=`, which is also the `quant_method` of their `config.json`.
CHECKPOINTS = {
    "compressed-tensors": "fewbit.checkpoints.compressed_tensors:CompressedTensors",
}


#: Runtimes that ONNX files are written for, by the word for them in `to=` and `runtime=`.
RUNTIME_FILES = {
    "ort-cpu": "fewbit.checkpoints.onnx.format:ort_cpu",
    "tensorrt": "fewbit.checkpoints.onnx.format:tensorrt",
    "migraphx": "fewbit.checkpoints.onnx.format:migraphx",
    "openvino": "fewbit.checkpoints.onnx.format:openvino",
}


def target_of(name: str) -> Target:
    """Return the checkpoint format or the runtime called `name`.

    Raises:
        NotYetError: one of the design that this version does not write.
        RecipeError: no such format.

    """
    known = {**CHECKPOINTS, **RUNTIME_FILES}
    if name in CHECKPOINTS_LATER:
        raise NotYetError(f"files of {name!r} are not in this version; there is: {', '.join(known)}")
    made: Target = lookup(known, name, what="checkpoint format")()
    return made


def checkpoint_format(name: str) -> CheckpointFormat:
    """Return the checkpoint format called `name`, one that can be read; raises `RecipeError`: no such format."""
    made: CheckpointFormat = lookup(CHECKPOINTS, name, what="checkpoint format")()
    return made


def frontend_of(framework: str) -> Frontend:
    """Return the front end of a framework."""
    made: Frontend = lookup(FRONTENDS, framework, what="front end")()
    return made
