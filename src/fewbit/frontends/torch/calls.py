"""What a module is called with, as a value: compare it, replace parts of it, call again.

Two tensors are the same when |a - b| <= tolerance * eps * (|a| + mean |a|) everywhere, eps being that of their type.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Types whose values `==` compares; of anything else only the object itself is the same.
_PLAIN = (bool, int, float, complex, str, bytes, slice, torch.dtype, torch.device)

#: Position or name of an argument.
Slot = int | str
#: Index or name of a part of an output; `None` is the whole.
Item = int | str | None

#: Arguments that spare memory where a forward has them: no key-value cache, scores of the last position only.
_SPARING = {"use_cache": False, "logits_to_keep": 1}


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments of one call of a module."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, batch: Any) -> Call:
        """Return the call for a batch: a tensor, a tuple of arguments or a dict of keyword arguments."""
        if isinstance(batch, Mapping):
            return cls((), dict(batch))
        return cls(batch if isinstance(batch, tuple) else (batch,), {})

    @classmethod
    def made_up(cls, model: nn.Module) -> Call | None:
        """Return a call that `model` makes up for itself, as language models of transformers do, where it is."""
        batch: Any = getattr(model, "dummy_inputs", None)
        if getattr(model, "main_input_name", None) != "input_ids" or batch is None:
            return None
        device = next(model.parameters()).device
        return cls((), {name: tensor.to(device) for name, tensor in batch.items()})

    def batch(self) -> Any:
        """Return what `of` makes this call of, if all arguments have positions or all have names."""
        return dict(self.kwargs) or (self.args if len(self.args) != 1 else self.args[0])

    def arguments(self) -> dict[Slot, Any]:
        """Return every argument by position or name."""
        arguments: dict[Slot, Any] = dict(enumerate(self.args))
        return arguments | dict(self.kwargs)

    def replaced(self, values: Mapping[Slot, Any]) -> Call:
        """Return the call with some arguments replaced."""
        args = tuple(values.get(position, value) for position, value in enumerate(self.args))
        return Call(args, {name: values.get(name, value) for name, value in self.kwargs.items()})

    def copy(self) -> Call:
        """Return the call on tensors of its own, for modules that write into what they are given."""
        return Call(copied(self.args), copied(dict(self.kwargs)))

    def caches(self) -> list[Slot]:
        """Return where key-value caches are handed over."""
        return [slot for slot, value in self.arguments().items() if _is_cache(value)]

    def without_caches(self) -> Call:
        """Return the call with `None` for every key-value cache: a cache would grow with every repetition."""
        return self.replaced(dict.fromkeys(self.caches()))

    @torch.no_grad()
    def run(self, module: nn.Module) -> Any:
        """Return the output of `module` for this call, in evaluation mode."""
        with evaluating(module):
            return module(*self.args, **self.kwargs)


def run_batch(model: nn.Module, batch: Any, *, every_score: bool = False) -> Any:
    """Run `model` on a batch (a tensor, a tuple of arguments or a dict) for the sake of its blocks.

    Without key-value caches, and of a language model that can do so with the scores of the last position only, unless
    `every_score` is wanted.
    """
    with configured_without_cache(model):
        return _sparing(model, batch, every_score=every_score).run(model)


def run_with_gradients(model: nn.Module, batch: Any) -> Any:
    """Run `model` on a batch without key-value caches, every score of it, and record what gradients need."""
    call = _sparing(model, batch, every_score=True)
    with configured_without_cache(model), evaluating(model), torch.enable_grad():
        return model(*call.args, **call.kwargs)


def _sparing(model: nn.Module, batch: Any, *, every_score: bool) -> Call:
    call = Call.of(batch)
    signature = inspect.signature(model.forward)
    free = signature.parameters.keys() - signature.bind_partial(*call.args).arguments
    if every_score or "labels" in call.kwargs:  # their loss takes the scores of all positions
        free -= {"logits_to_keep"}
    sparing = {name: value for name, value in _SPARING.items() if name in free}
    return Call(call.args, {**call.kwargs, **sparing})


def items(output: Any) -> dict[Item, Any]:
    """Return what can be handed on of an output: its parts by index or name if it has any, and the whole."""
    if isinstance(output, Mapping):
        return {**output, None: output}
    return {**dict(enumerate(output)), None: output} if isinstance(output, (tuple, list)) else {None: output}


def scores_of(output: Any) -> Tensor | None:
    """Return the tensor of an output that a loss is of: scores of labels where it has them; `None`: there is none."""
    scores = getattr(output, "logits", None)
    return hidden(output) if scores is None else scores


def hidden(output: Any) -> Tensor | None:
    """Return the hidden state: the output, or its first tensor."""
    return next((value for value in items(output).values() if isinstance(value, Tensor)), None)


def same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Whether two arguments or outputs are equal, their tensors to `tolerance` roundings."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return _close(a, b, tolerance)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key], tolerance) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(*pair, tolerance) for pair in zip(a, b, strict=True))
    return isinstance(a, _PLAIN) and bool(a == b)


def holds_tensor(value: Any) -> bool:
    """Whether there is a tensor with numbers in `value`."""
    return size(value) > 0


def shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of all tensors in `value`."""
    return tuple(tuple(tensor.shape) for tensor in tensors_in(value))


def size(value: Any) -> int:
    """Return how many numbers the tensors in `value` hold."""
    return sum(tensor.numel() for tensor in tensors_in(value))


def copied(value: Any) -> Any:
    """Return `value` with every tensor in it cloned; containers are rebuilt as plain ones."""
    return mapped(value, lambda tensor: tensor.detach().clone())


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return `value` with `function` of every tensor in it; containers are rebuilt as plain ones."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) is dict:
        return {key: mapped(part, function) for key, part in value.items()}
    return type(value)(mapped(part, function) for part in value) if type(value) in (tuple, list) else value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in `value`, which may be nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(part)


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    if not a.dtype.is_floating_point or not tolerance or not a.numel():
        return torch.equal(a, b)
    # Magnitudes beside the mean magnitude: a few huge activations must not hide what happens to the rest.
    scale = a.abs() + a.abs().mean()
    return bool(((a - b).abs() <= tolerance * torch.finfo(a.dtype).eps * scale).all())


def _is_cache(value: Any) -> bool:
    return hasattr(value, "get_seq_length") and hasattr(value, "update")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Keep `module` in evaluation mode, and give every part the mode that it had."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def configured_without_cache(model: nn.Module) -> Iterator[None]:
    """Let no configuration inside `model` ask for a key-value cache; a wrapper's forward need not know of one."""
    configs = {id(config): config for part in model.modules() if (config := getattr(part, "config", None)) is not None}
    asking = [config for config in configs.values() if getattr(config, "use_cache", None) is True]
    for config in asking:
        config.use_cache = False
    try:
        yield
    finally:
        for config in asking:
            config.use_cache = True
