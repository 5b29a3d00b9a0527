"""The PyTorch front end behind the `Frontend` contract."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.activation import Activation
from fewbit.corrections import Repaired
from fewbit.errors import MissingExtraError, PlanError, RecipeError
from fewbit.float_bias import FloatBias
from fewbit.frontends.torch.attention import find_products
from fewbit.frontends.torch.batches import adopted, fed
from fewbit.frontends.torch.calibration import CalibrationRun
from fewbit.frontends.torch.calls import evaluating
from fewbit.frontends.torch.channel_splitting import split_channels
from fewbit.frontends.torch.execution import execution
from fewbit.frontends.torch.finite import finite_bias, finite_weight
from fewbit.frontends.torch.fused_experts import experts_apart
from fewbit.frontends.torch.known_inputs import known_inputs
from fewbit.frontends.torch.layers import canonical_weight, find_layers
from fewbit.frontends.torch.low_rank import require_no_adapters
from fewbit.frontends.torch.magnitudes import largest_activations, largest_weight
from fewbit.frontends.torch.norm_folding import fold_norms
from fewbit.frontends.torch.norm_statistics import reestimate_norms
from fewbit.frontends.torch.output_statistics import output_statistics
from fewbit.frontends.torch.probe import probe
from fewbit.frontends.torch.product_forms import ProductForms, product_forms
from fewbit.frontends.torch.product_statistics import product_statistics
from fewbit.frontends.torch.quantized import quantized_layers, quantized_prefixes
from fewbit.frontends.torch.relu6 import replace_relu6
from fewbit.frontends.torch.replacement import TorchReplacement
from fewbit.frontends.torch.resident_memory import give_back
from fewbit.frontends.torch.rounded_product import RoundedProduct
from fewbit.frontends.torch.shared_inputs import shared_inputs
from fewbit.frontends.torch.stored import to_stored
from fewbit.frontends.torch.stored_floats import require_finite_floats, round_floats
from fewbit.frontends.torch.stream_rotation import MatrixOf, rotate
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces import Activations, Execution, Layer, StoredTensor, Watch
from fewbit.interfaces import QuantizedLayer as Quantized
from fewbit.known_output import KnownOutput
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import ScaleType, Scheme
from fewbit.statistics.mean import Mean
from fewbit.transforms import Applied
from fewbit.transforms.outlier_splitting import Split


class TorchFrontend:
    """Layers, data and replacements of any `nn.Module`."""

    trains = divides = True
    simulates = False

    def layers(self, model: nn.Module) -> list[Layer]:
        """Return the quantizable layers in the order of the model.

        Raises:
            PlanError: the model holds quantized layers already.

        """
        for name, module in quantized_layers(model):
            raise PlanError(f"{name} is quantized already, to {module.scheme}; start from the float model")
        for name, part in model.named_modules():
            if isinstance(part, RoundedProduct):
                raise PlanError(f"{name} is rounded already; start from the float model")
        return find_layers(model)

    def experts_apart(self, model: nn.Module, batch: Callable[[], Any]) -> AbstractContextManager[Sequence[str]]:
        """Make layers of experts that are fused into one parameter; they stay so where one is quantized meanwhile."""
        return experts_apart(model, batch)

    def products(self, model: nn.Module, batch: Any | None) -> list[Layer]:
        """Return the products inside attention that a run on `batch` shows."""
        return find_products(model, batch)

    def shared_inputs(
        self, model: nn.Module, layers: Sequence[Layer], batch: Any | None
    ) -> list[tuple[str, ...]] | None:
        """Return which `layers` of a module are given the same tensor in a run, together."""
        return shared_inputs(model, layers, batch)

    def floats(self, model: nn.Module) -> list[StoredTensor]:
        """Return every stored parameter and buffer, one that hangs at several places under its first name."""
        stored: dict[int, StoredTensor] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            stored.setdefault(id(tensor), StoredTensor(name, _type_name(tensor.dtype), tuple(tensor.shape)))
        return list(stored.values())

    def weight(self, model: nn.Module, layer: Layer) -> Tensor:
        """Return the weight of `layer` as (out, in).

        Raises:
            NonFiniteError: it holds NaN or infinity.

        """
        return finite_weight(model, layer.name)

    def bias(self, model: nn.Module, layer: Layer) -> Tensor:
        """Return the bias of a `layer` that has one, (out,).

        Raises:
            NonFiniteError: it holds NaN or infinity.

        """
        return finite_bias(model, layer.name)

    def largest_weight(self, model: nn.Module, layer: Layer) -> float | None:
        """Return the largest magnitude of the weight of `layer`; `None` of a model without numbers."""
        return largest_weight(canonical_weight(model.get_submodule(layer.name)))

    def largest_activations(
        self, model: nn.Module, layers: Sequence[Layer], batches: Sequence[Any]
    ) -> Mapping[str, tuple[float, float]]:
        """Return the largest magnitudes of the float inputs and outputs of `layers`, of those that a batch reaches."""
        return largest_activations(model, [layer.name for layer in layers], batches)

    def replacement(
        self,
        model: nn.Module,
        layer: Layer,
        qtensor: QTensor,
        activations: Activations | None = None,
        bias: IntegerBias | FloatBias | None = None,
    ) -> TorchReplacement:
        """Return the quantized form of `layer`, not yet installed; without `bias` it keeps the one that it has."""
        return TorchReplacement(model, layer, qtensor, activations or Activations(), bias)

    def execution(self, model: nn.Module, layer: Layer, weight: Scheme | None, rounded: Scheme | None) -> Execution:
        """Return what `layer` would run on."""
        return execution(model, layer, weight, rounded)

    def problems(self, model: nn.Module, wanted: Sequence[tuple[Quantized, Sequence[str]]]) -> Sequence[str]:  # noqa: ARG002
        """Return nothing: modules run whatever schemes there are."""
        return ()

    def product_problems(self, model: nn.Module, wanted: Sequence[tuple[Layer, Scheme]]) -> Sequence[str]:  # noqa: ARG002
        """Return nothing: modules run whatever schemes there are."""
        return ()

    def tensors(self, model: nn.Module, storage_type: ScaleType) -> Iterator[tuple[str, Any]]:
        """Yield NumPy arrays by full name, floats as `storage_type`; QTensors, static inputs, int32 biases by layer."""
        require_no_adapters(model)
        own = quantized_prefixes(model)
        for name, tensor in model.state_dict().items():
            if not name.startswith(own):
                yield name, to_stored(tensor, storage_type)
        for name, module in quantized_layers(model):
            if module.input is not None and module.input.scheme.static:
                yield name, module.input.activation
            yield name, module.qtensor
            if module.integer_bias is not None:
                yield name, module.integer_bias

    def require_finite(
        self, model: nn.Module, layers: Sequence[Layer], names: Collection[str], storage_type: ScaleType
    ) -> None:
        """Raise `NonFiniteError` for numbers of `layers`, or of tensors as they are stored, that are not finite."""
        for layer in layers:
            give_back([self.weight(model, layer)])
            if layer.bias:
                self.bias(model, layer)
        require_finite_floats(model, names, storage_type)

    def round_floats(self, model: nn.Module, names: Collection[str], storage_type: ScaleType) -> int:
        """Round the float tensors called `names` to `storage_type` in place; return how many numbers changed."""
        return round_floats(model, names, storage_type)

    def fold_norms(self, model: nn.Module, batch: Any, folded: Callable[..., tuple[Tensor, Tensor]]) -> Applied:
        """Fold every BatchNorm that can be folded; `folded` computes weight and bias of a pair."""
        return fold_norms(model, batch, folded)

    def replace_relu6(self, model: nn.Module, batch: Any) -> Applied:
        """Put ReLU where modules are ReLU6, and say how far that takes the output on `batch`."""
        return replace_relu6(model, batch)

    def known_inputs(
        self, model: nn.Module, names: Sequence[str], outputs: Mapping[str, KnownOutput], batch: Any
    ) -> Mapping[str, Mean]:
        """Return the means of the rows of layers that BatchNorms tell, by what flows where in a run on `batch`."""
        return known_inputs(model, names, outputs, batch)

    def reestimate_norms(self, model: nn.Module, batches: Sequence[Any], storage_type: ScaleType) -> Repaired:
        """Return what BatchNorms have seen of `batches` in the model as it is now, as numbers of `storage_type`."""
        return reestimate_norms(model, batches, storage_type)

    def rotate(self, model: nn.Module, batch: Any, matrix: MatrixOf, *, heads: bool) -> Applied:
        """Rotate the residual stream, and values inside heads, where the model's output on `batch` stays the same."""
        return rotate(model, batch, matrix, heads=heads)

    def split_channels(self, model: nn.Module, batch: Any, split: Split, *, gather: bool) -> Applied:
        """Split channels between linear layers, where the model's output on `batch` stays the same."""
        return split_channels(model, batch, split, gather=gather)

    def calibrate(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        wanted: Mapping[str, Sequence[str]],
        batches: Sequence[Any],
        **asked: Any,
    ) -> CalibrationRun:
        """Return a run of `batches` through `model`, one block at a time behind the quantized ones, as is `asked`."""
        return CalibrationRun(model, layers, wanted, batches, **asked)

    def output_statistics(
        self, model: nn.Module, wanted: Mapping[str, str], batches: Sequence[Any]
    ) -> Mapping[str, Any]:
        """Return the statistic that is `wanted` of the output of each layer, in the form that is installed."""
        return output_statistics(model, wanted, batches)

    def product_statistics(
        self, model: nn.Module, products: Sequence[Layer], wanted: Mapping[str, str], batches: Sequence[Any]
    ) -> Mapping[str, Mapping[str, Any]]:
        """Return by operand the statistic that is `wanted` of each product inside attention."""
        return product_statistics(model, products, wanted, batches)

    def product_forms(
        self, model: nn.Module, products: Sequence[Layer], activations: Mapping[str, Mapping[str, Activation]]
    ) -> Sequence[ProductForms]:
        """Return the rounded forms of those `products` that have `activations`, by operand; none is installed yet."""
        return product_forms(model, products, activations)

    def graph(self, model: nn.Module, batch: Any) -> Any:
        """Return a quantized module as an `OnnxModel` with the same scales and codes, exported on `batch`.

        Raises:
            MissingExtraError: what exports is not installed.
            CheckpointError: torch cannot export the module, or a graph cannot hold what is quantized in it.

        """
        require_no_adapters(model)
        try:
            from fewbit.frontends.torch.quantized_graph import quantized_graph
        except ImportError as error:
            raise MissingExtraError(f"torch exports to ONNX by {error.name}; pip install 'fewbit[export]'") from error
        return quantized_graph(model, batch)

    def fed(self, batch: Any) -> Any:
        """Return the tensors of a batch, by name or in order."""
        return fed(batch)

    def place(self, model: Any, device: str) -> Any:
        """Return a module or tensor on `device`.

        Raises:
            RecipeError: no such device here.

        """
        try:
            return model.to(device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise RecipeError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error

    def inputs(self, model: nn.Module) -> None:
        """Return nothing: a module declares no shapes."""

    def adopted(self, model: nn.Module, batch: Any) -> Any:
        """Return `batch` with NumPy arrays as tensors where `model` is, floats in the type of its parameters."""
        return adopted(model, batch)

    @torch.no_grad()
    def run(self, model: nn.Module, batch: Any) -> Any:
        """Return the output of `model` for a batch: a tensor, a tuple of arguments or a dict of keyword arguments.

        The model runs in evaluation mode, and keeps the mode that it had.
        """
        with evaluating(model):
            if isinstance(batch, Mapping):
                return model(**batch)
            return model(*batch) if isinstance(batch, tuple) else model(batch)

    def probe(self, forms: Sequence[Any], watch: Watch | None = None) -> AbstractContextManager[Mapping[str, float]]:
        """Watch float forwards; afterwards the mapping holds each layer's output SQNR in dB."""
        return probe(forms, watch)


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
