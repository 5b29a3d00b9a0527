"""The constants of a graph under the names that a checkpoint has for them: those of layers after their layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.errors import NonFiniteError
from fewbit.float_bias import FloatBias
from fewbit.frontends.onnx.batches import Numbers
from fewbit.interfaces import BYTES, StoredTensor
from fewbit.onnx_graph.constants import tensor_of
from fewbit.onnx_graph.live import OnnxModel
from fewbit.schemes.scheme import ScaleType


def constants(model: OnnxModel) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Yield every constant with its name: of a layer `NAME.weight` and `NAME.bias`, also where others share them."""
    known = set()
    for own in model.found.values():
        for part, value in {"weight": own.weight, "bias": own.bias_value}.items():
            if value is not None and value.const_value is not None:
                known.add(id(value))
                yield f"{own.layer.name}.{part}", value.const_value
    for graph in model.graph.graphs():
        for name, value in graph.initializers.items():
            if id(value) not in known and value.const_value is not None:
                yield name, value.const_value


def stored_tensors(model: OnnxModel) -> list[StoredTensor]:
    """Return every constant, one that several layers share under the first of their names."""
    first: dict[int, StoredTensor] = {}
    for name, tensor in constants(model):
        first.setdefault(id(tensor_of(tensor)), _described(name, tensor))
    return list(first.values())


def written_tensors(model: OnnxModel, storage_type: ScaleType) -> Iterator[tuple[str, Any]]:
    """Yield NumPy arrays by full name, floats as `storage_type`; QTensors, static inputs, int32 biases by layer."""
    installed = {f"{name}.weight" for name in model.layers}
    installed |= {f"{name}.bias" for name, rounded in model.layers.items() if rounded.bias is not None}
    for name, tensor in constants(model):
        if name not in installed:
            yield name, as_stored(tensor, storage_type)
    for name, rounded in model.layers.items():
        given = rounded.activations.input
        if given is not None and given.scheme.static:
            yield name, given
        yield name, rounded.qtensor
        if isinstance(rounded.bias, FloatBias):
            yield f"{name}.bias", as_stored(ir.tensor(np.asarray(rounded.bias.values)), storage_type)
        elif rounded.bias is not None:
            yield name, rounded.bias


def storage_type_of(model: OnnxModel) -> ScaleType:
    """Return the float type that most constants have, counted by numbers; float32 for double."""
    counts: Counter[str] = Counter()
    for _, tensor in constants(model):
        if tensor.dtype.is_floating_point():
            counts[tensor.dtype.numpy().name] += tensor.size
    common = max(counts, key=counts.__getitem__) if counts else "float32"
    return common if common in ("float16", "bfloat16") else "float32"  # type: ignore[return-value]


def as_stored(tensor: ir.TensorProtocol, storage_type: ScaleType) -> Numbers:
    """Return the numbers of a constant, floats as `storage_type` (bfloat16 through ml_dtypes)."""
    import ml_dtypes

    numbers: Numbers = tensor.numpy()
    if not tensor.dtype.is_floating_point():
        return numbers
    return numbers.astype(ml_dtypes.bfloat16 if storage_type == "bfloat16" else np.dtype(storage_type))


def _described(name: str, tensor: ir.TensorProtocol) -> StoredTensor:
    kind = tensor.dtype.numpy().name
    shape = tuple(int(size) for size in tensor.shape.numpy())
    # What no checkpoint stores under its own type counts by its bytes.
    return StoredTensor(name, kind, shape) if kind in BYTES else StoredTensor(name, "uint8", (tensor.nbytes,))


def require_numbers(model: OnnxModel, names: Collection[str]) -> None:
    """Raise `NonFiniteError`, with its name, for a float constant among `names` that holds NaN."""
    for name, tensor in constants(model):
        if name in names and tensor.dtype.is_floating_point():
            bad = int(np.count_nonzero(np.isnan(tensor.numpy().astype(np.float32, copy=False))))
            if bad:
                raise NonFiniteError(f"{name}: {bad} of its numbers are NaN; repair them")
