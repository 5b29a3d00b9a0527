"""What each row of a layer's input counts: the mean square of the loss's gradient at the layer's output there.

Of a language model the loss is the cross-entropy of labels drawn from its own predictions, whose squared gradients are
in the mean the curvature of the KL divergence; of another model a random projection of its output, likewise for the
squared error. One forward and one backward of the float model for each batch; blocks are run again on the way back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewbit.frontends.torch.blocks import find_blocks
from fewbit.frontends.torch.calls import hidden, run_with_gradients
from fewbit.frontends.torch.layers import module_class
from fewbit.frontends.torch.resident_memory import trim
from fewbit.interfaces import Layer

#: Layers whose outputs have a row for each row of their inputs.
_KINDS = ("Linear", "Conv1D")
#: Rows that labels are drawn for together: their sums take as much memory as the scores.
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """Weights of the rows of layers' inputs, of mean 1 over all batches, (rows,) for each batch."""

    by_layer: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)

    def of(self, layers: Sequence[str], batch: int) -> Tensor | None:
        """Return the mean of what the `layers` that share an input say of its rows; `None` where that is not known."""
        known = [self.by_layer[name] for name in layers if name in self.by_layer]
        if not known or batch >= len(known[0]):
            return None
        found: Tensor = sum(own[batch] for own in known) / len(known)  # type: ignore[assignment]
        return found


class GradientRun:
    """Runs batches forward and their gradients back; when it has been gone through, `weights` are there.

    An expert, and a layer that a batch does not call exactly once, has none; nor has any of a model that cannot be
    differentiated.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        batches: Sequence[Any],
        wanted: Collection[str] | None = None,
        *,
        first: int = 0,
    ) -> None:
        """Prepare; nothing runs yet. Only the layers called in `wanted` are watched, or all of them.

        `first` is the number of the first batch: what is drawn for a batch depends on its own number alone.
        """
        self._model, self._batches, self._first = model, batches, first
        self._blocks = [block.name for block in find_blocks(model, layers).blocks]
        self._head = {layer.shape[0] for layer in layers if layer.kind == "head"}
        # Behind quantized layers an expert gets other tokens than here.
        own = [layer.name for layer in layers if not layer.expert and (wanted is None or layer.name in wanted)]
        watched = [name for name in own if module_class(model.get_submodule(name)) in _KINDS]
        self._seen: dict[str, list[list[Tensor]]] = {name: [] for name in watched}
        self._differentiable = True

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[None]:
        """Yield after each batch."""
        with _frozen(self._model), _run_again(self._model, self._blocks):
            for number, batch in enumerate(self._batches, self._first):
                draw = torch.Generator().manual_seed(number)
                for calls in self._seen.values():
                    calls.append([])
                if self._differentiable:
                    with _listening(self._model, self._seen):
                        self._differentiable = _go_back(self._model, batch, self._head, draw)
                    trim()  # what one batch leaves behind must not add up over all of them
                yield

    @property
    def weights(self) -> TokenWeights:
        """What the rows count."""
        return self.weighed(means_over([self.means]))

    @property
    def means(self) -> Mapping[str, Sequence[float]]:
        """By layer the mean over the rows of each batch, of layers that every batch calls once."""
        if not self._differentiable:
            return {}
        single = {name: own for name, own in self._seen.items() if own and all(len(calls) == 1 for calls in own)}
        return {name: [float(calls[0].double().mean()) for calls in own] for name, own in single.items()}

    def weighed(self, means: Mapping[str, float]) -> TokenWeights:
        """Return what the rows count where the mean over all batches, also those of others, is 1."""
        return TokenWeights(
            {name: [(calls[0] / mean).detach() for calls in self._seen[name]] for name, mean in means.items()}
        )


def means_over(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Return by layer the mean over the batches of all parts, of layers that have one everywhere."""
    found = {}
    for name in parts[0]:
        if all(name in part for part in parts):
            mean = float(torch.tensor([own for part in parts for own in part[name]], dtype=torch.float64).mean())
            if 0.0 < mean < float("inf"):
                found[name] = mean
    return found


def _go_back(model: nn.Module, batch: Any, head: set[int], draw: torch.Generator) -> bool:
    """Run the model on a batch, and its gradient back; whether it has one."""
    try:
        output = run_with_gradients(model, batch)
        scores = getattr(output, "logits", None)
        scores = hidden(output) if scores is None else scores
        if scores is None or not scores.requires_grad:
            return False
        scores.backward(_slope(scores.detach(), draw, labelled=scores.shape[-1] in head))
    except RuntimeError as error:  # of an operator without gradient, or of what is written over
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    return True


def _slope(scores: Tensor, draw: torch.Generator, *, labelled: bool) -> Tensor:
    """Return the gradient of the loss at the model's output; `labelled`: of the cross-entropy of drawn labels."""
    if not labelled:
        return torch.randn(scores.shape, generator=draw).to(scores)
    slope = scores.reshape(-1, scores.shape[-1]).float().softmax(-1)
    labels = torch.cat([_labels(rows, draw) for rows in torch.split(slope, _ROWS_AT_ONCE)])
    slope.scatter_add_(1, labels, -torch.ones_like(labels, dtype=slope.dtype))
    return slope.reshape(scores.shape).to(scores.dtype)


def _labels(probabilities: Tensor, draw: torch.Generator) -> Tensor:
    """Return a label (rows, 1) for each row, by inversion: ten times as fast as `torch.multinomial`."""
    reached = probabilities.cumsum(-1)
    share = torch.rand(len(probabilities), 1, generator=draw).to(reached)
    # The last label where rounding leaves the share above all: a draw in 2^24.
    return torch.searchsorted(reached, share * reached[:, -1:], right=True).clamp_(max=probabilities.shape[-1] - 1)


@contextmanager
def _listening(model: nn.Module, seen: Mapping[str, list[list[Tensor]]]) -> Iterator[None]:
    """Keep the mean squares of the gradients at the outputs of layers, in the last list of each."""

    def keep(name: str, slope: Tensor) -> None:
        seen[name][-1].append(slope.float().square().mean(-1).reshape(-1))

    def left(name: str, module: nn.Module, args: Any, output: Tensor) -> Tensor:  # noqa: ARG001
        if not torch.is_grad_enabled():
            return output
        if not output.requires_grad:
            # The first layers of the model; a copy, since what follows may write into it.
            output = output.detach().requires_grad_().clone()
        output.register_hook(partial(keep, name))  # type: ignore[no-untyped-call]
        return output

    with ExitStack() as hooks:
        for name in seen:
            hooks.callback(model.get_submodule(name).register_forward_hook(partial(left, name)).remove)
        yield


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter ask for a gradient: those of what flows are enough."""
    asking = [own for own in model.parameters() if own.requires_grad]
    for own in asking:
        own.requires_grad_(False)
    try:
        yield
    finally:
        for own in asking:
            own.requires_grad_(True)


@contextmanager
def _run_again(model: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
    """Have the blocks keep their inputs alone; what is inside of one comes again on the way back."""
    with ExitStack() as undo:
        for name in blocks:
            module = model.get_submodule(name)
            own = module.__dict__.get("forward")
            undo.callback(_set_forward, module, own)
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
        yield


def _set_forward(module: nn.Module, own: Any) -> None:
    if own is None:
        del module.forward
    else:
        module.forward = own
