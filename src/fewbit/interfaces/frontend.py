"""What knows a framework: its layers, its data, its quantized forms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from fewbit.activation import Activation
from fewbit.corrections import Repaired
from fewbit.float_bias import FloatBias
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces.calibration_run import CalibrationRun
from fewbit.interfaces.forms import Activations, Execution, Forms, Replacement
from fewbit.interfaces.layer import Layer, QuantizedLayer
from fewbit.interfaces.manifest import StoredTensor
from fewbit.known_output import KnownOutput
from fewbit.numerics.namespace import Array
from fewbit.qtensor import QTensor
from fewbit.samples.model_input import ModelInput
from fewbit.schemes.scheme import ScaleType, Scheme
from fewbit.statistics.mean import Mean
from fewbit.statistics.partials import Parts
from fewbit.transforms import Applied
from fewbit.transforms.scope import Scope

#: Takes the name of a layer, its input as (rows, channels), and how that is rounded row by row; `None`: not so.
Watch = Callable[[str, Array, Activation | None], None]


class Frontend(Protocol):
    """What knows a framework."""

    @property
    def simulates(self) -> bool:
        """Whether its quantized forms compute in float what codes stand for: the time they take says nothing."""

    @property
    def trains(self) -> bool:
        """Whether its models run with trial weights that gradients reach, as block reconstruction needs it."""

    @property
    def divides(self) -> bool:
        """Whether several processes can calibrate a model, each with some of the batches."""

    def layers(self, model: Any) -> list[Layer]:
        """Return the quantizable layers in the order of the model."""

    def experts_apart(self, model: Any, batch: Callable[[], Any | None]) -> AbstractContextManager[Sequence[str]]:
        """Make layers of experts that are fused into one parameter; they stay so where one is quantized meanwhile.

        A run on a `batch` shows them, `None`: on one that the model has itself. Yields what to say of those that stay.
        """

    def products(self, model: Any, batch: Any | None) -> list[Layer]:
        """Return the products inside attention that a run on `batch` shows; `None`: one that the model has itself."""

    def shared_inputs(self, model: Any, layers: Sequence[Layer], batch: Any | None) -> Sequence[tuple[str, ...]] | None:
        """Return which `layers` of a module are given the same, together; `None` where only a `batch` would show it."""

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

    def replace_relu6(self, model: Any, batch: Any) -> Applied:
        """Put ReLU where ReLU6 is, and say how far that takes the model's output on `batch`."""

    def known_inputs(
        self, model: Any, names: Sequence[str], outputs: Mapping[str, KnownOutput], batch: Any
    ) -> Mapping[str, Mean]:
        """Return the means of the rows of layers that BatchNorms tell: those that stand, and those in `outputs`."""

    def reestimate_norms(self, model: Any, batches: Sequence[Any], storage_type: ScaleType) -> Repaired:
        """Return what BatchNorms have seen of `batches` in the model as it is now, as numbers of `storage_type`."""

    def calibrate(  # noqa: PLR0913  # all that is asked of a run
        self,
        model: Any,
        layers: Sequence[Layer],
        wanted: Mapping[str, Sequence[str]],
        batches: Sequence[Any],
        *,
        sequential: bool,
        prepare: Callable[[Scope], None] | None = None,
        trained: Collection[str] = (),
        parts: Parts | None = None,
    ) -> CalibrationRun:
        """Return a run of `batches` through `model`; `wanted` names the statistics of each layer to be quantized.

        `prepare` is given each block, or a model without blocks, before its layers are measured. The `trained` layers
        come again once the block that they are in, or all that is in no block, is solved. A front end that `divides`
        sums statistics in `parts`, and its run is a `DividedRun`.
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

    def probe(self, forms: Sequence[Forms], watch: Watch | None = None) -> AbstractContextManager[Mapping[str, float]]:
        """Watch float forwards; afterwards the mapping holds each layer's output SQNR in dB on its float inputs.

        `watch` is given the inputs of layers that are no table, channels last.
        """
