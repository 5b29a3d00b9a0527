"""The float tensors of a module that a file will hold as they are, in its type: whether it can, and rounding to it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from fewbit.errors import NonFiniteError
from fewbit.frontends.torch.resident_memory import give_back
from fewbit.schemes.scheme import ScaleType


def require_finite_floats(model: nn.Module, names: Collection[str], storage_type: ScaleType) -> None:
    """Raise `NonFiniteError` for numbers of the float tensors called `names` that are not finite as they are stored."""
    target = getattr(torch, storage_type)
    for name, tensor in _called(model, names):
        bad = sum(int((~torch.isfinite(piece.to(target))).sum()) for piece in pieces(tensor))
        give_back([tensor])
        if bad:
            raise NonFiniteError(
                f"{name}: {bad} of its numbers are not finite in {storage_type}; repair them, "
                "or use another dtype where they overflow"
            )


def round_floats(model: nn.Module, names: Collection[str], storage_type: ScaleType) -> int:
    """Round the float tensors called `names` to `storage_type` in place; return how many numbers changed."""
    target = getattr(torch, storage_type)
    changed = 0
    for _, tensor in _called(model, names):
        for piece in pieces(tensor):
            nearest = piece.to(target).to(piece.dtype)
            differ = int((nearest != piece).sum())
            if differ:  # a write would copy pages that are mapped from a file
                piece.copy_(nearest)
            changed += differ
    return changed


def _called(model: nn.Module, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored float tensors of `model` that are called in `names`."""
    direct = {name: tensor for name in names if (tensor := _hanging(model, name)) is not None}
    # A state_dict packs every quantized layer anew.
    rest = model.state_dict(keep_vars=True) if len(direct) < len(names) else {}
    for name in names:
        tensor = direct.get(name, rest.get(name))
        if tensor is not None and tensor.dtype.is_floating_point:
            yield name, tensor.detach()


def _hanging(model: nn.Module, name: str) -> Tensor | None:
    """Return the parameter or buffer that hangs in `model` under `name`; `None`: a module stores it in its own way."""
    parent, _, attribute = name.rpartition(".")
    try:
        module = model.get_submodule(parent)
    except AttributeError:
        return None
    found = module._parameters.get(attribute)
    return module._buffers.get(attribute) if found is None else found


def pieces(tensor: Tensor) -> Sequence[Tensor]:
    """Return views of a few million numbers that make up `tensor`."""
    return torch.split(tensor.view(-1), 1 << 22) if tensor.is_contiguous() else [tensor]
