"""Training that has diverged stops where it did: the layer whose numbers are NaN or infinite is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import NonFiniteError


def require_finite_output(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
    """Raise `NonFiniteError` for an output of a training step that is not finite; a forward hook of a model."""
    if not model.training or torch.compiler.is_compiling() or all(_finite(own) for own in _tensors(output)):
        return
    raise NonFiniteError(f"{_culprit(model, args, kwargs)}; lower the learning rate, or go on from an earlier state")


def _culprit(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return where numbers first are not finite: in a parameter, or else in what a part puts out."""
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            own = name.replace(".parametrizations.weight.original", ".weight")
            return f"{own} has become NaN or infinite, so that the model's output is"
    return f"{_first_output(model, args, kwargs) or 'the model'} puts out NaN or infinity"


@torch.no_grad()
def _first_output(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Return the first part of the model that puts out what is not finite."""
    found: list[str] = []
    names = {module: name for name, module in model.named_modules() if name}

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if not found and not all(_finite(own) for own in _tensors(output)):
            found.append(names[module])

    handles = [module.register_forward_hook(look) for module in names]
    try:
        model.forward(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return next(iter(found), None)


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output: of itself, or of the parts of a tuple, a list or a mapping."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for own in output.values():
            yield from _tensors(own)
    elif isinstance(output, list | tuple):
        for own in output:
            yield from _tensors(own)
