"""Bytes of parameters, buffers and codes of a model by what they are, and those that a forward saves for gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from fewbit.frontends.torch.calls import Call
from fewbit.frontends.torch.low_rank import LowRank
from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.training.memory import STATES, STEP, MemoryRow, TrainingMemory
from fewbit.training.trained_range import TrainedRange

_KERNELS = "codes as kernels hold them"
#: What the parts are called, in the order of the table.
_PARTS = ("weights in training", "ranges", "adapters", "codes and scales", _KERNELS, "everything else")


def measured(model: nn.Module, batch: Any, optimizer: str) -> TrainingMemory:
    """Do what `fewbit.training_memory` says."""
    if batch is None:
        return memory_of(model, optimizer)
    # Averages of norms, ranges and steps would move.
    own, call = copy.deepcopy(model).train(), Call.of(batch)
    saved = saved_bytes(own, lambda: own(*call.args, **call.kwargs))
    return memory_of(own, optimizer, saved=saved)


def memory_of(
    model: nn.Module, optimizer: str, *, saved: int | None = None, beside: Sequence[MemoryRow] = ()
) -> TrainingMemory:
    """Return the bytes of a model with what a forward saves, and of what is `beside` it."""
    found: dict[str, dict[int, Tensor]] = {what: {} for what in _PARTS}
    seen: set[int] = set()
    for what, tensor in _tensors(model):
        place = tensor.untyped_storage().data_ptr()
        if id(tensor) not in seen and not (what == _KERNELS and place in seen):
            seen |= {id(tensor), place}
            found[what][id(tensor)] = tensor
    rows = [_row(what, list(own.values()), optimizer) for what, own in found.items() if own]
    return TrainingMemory(optimizer_name=optimizer, rows=(*rows, *beside), activations=saved)


def saved_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """Return the bytes that `run`, which computes a loss or what one is computed of, saves for the way back.

    Parameters and buffers are there anyway and do not count; what is saved twice counts once.
    """
    held = {tensor.untyped_storage().data_ptr() for _, tensor in _tensors(model)}
    saved: list[ReferenceType[_Saved]] = []

    def pack(tensor: Tensor) -> _Saved:
        own = _Saved(tensor)
        saved.append(ref(own))
        return own

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda own: own.tensor):
        outcome = run()
        # A part of the graph that nothing leads back to is gone by now, with what it has saved.
        storages = [own.tensor.untyped_storage() for reference in saved if (own := reference()) is not None]
    del outcome
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(size for place, size in sizes.items() if place not in held)


@dataclass(slots=True, weakref_slot=True)
class _Saved:
    """A tensor as the graph holds it."""

    tensor: Tensor


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that a model holds with what it is; some come several times."""
    for module in model.modules():
        own = _part(module)
        for parameter in module._parameters.values():
            if parameter is not None:
                yield "everything else" if own == "codes and scales" else own, parameter
        for buffer in module._buffers.values():
            if buffer is not None:
                yield own, buffer
        if isinstance(module, QuantizedLayer):
            for ready in module._ready.values():
                for tensor in _inside(ready):
                    yield _KERNELS, tensor


def _part(module: nn.Module) -> str:
    kinds: dict[type[nn.Module], str] = {
        ParametrizationList: "weights in training",
        TrainedRange: "ranges",
        LowRank: "adapters",
        QuantizedLayer: "codes and scales",
    }
    return next((what for kind, what in kinds.items() if isinstance(module, kind)), "everything else")


def _inside(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a kernel has made of a weight."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for own in value:
            yield from _inside(own)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _inside(getattr(value, field.name))


def _row(what: str, tensors: Sequence[Tensor], optimizer: str) -> MemoryRow:
    trained = [own for own in tensors if own.requires_grad]
    gradients = sum(own.numel() * own.element_size() for own in trained)
    return MemoryRow(
        what=what,
        numbers=sum(own.numel() for own in tensors),
        weights=sum(own.numel() * own.element_size() for own in tensors),
        gradients=gradients,
        optimizer=STATES[optimizer] * gradients + STEP[optimizer] * len(trained),
    )
