"""What each row of a layer's input, or of a block's output, counts: the mean square of the loss's gradient there.

The gradient of a layer is that at its output. One forward and one backward of the float model for each batch; what the
loss is says `loss_gradient.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.algorithms.block_loss import features_last
from fewbit.frontends.torch.calls import hidden
from fewbit.frontends.torch.layers import module_class
from fewbit.frontends.torch.loss_gradient import LossGradient
from fewbit.frontends.torch.module_chain import modules_in
from fewbit.frontends.torch.resident_memory import trim
from fewbit.interfaces import Layer

#: Layers whose outputs have a row for each row of their inputs.
_KINDS = ("Linear", "Conv1D")


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """Weights of the rows of layers' inputs and blocks' outputs, of mean 1 over all batches, (rows,) for each batch."""

    by_layer: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)

    def of_block(self, name: str) -> Sequence[Tensor] | None:
        """Return what the rows of the output of a block count, by batch; `None` where that is not known."""
        return self.by_layer.get(name)

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
        loss: LossGradient,
        layers: Sequence[Layer],
        batches: Sequence[Any],
        wanted: Collection[str] | None = None,
        *,
        blocks: Collection[str] = (),
        first: int = 0,
    ) -> None:
        """Prepare; nothing runs yet. Only the layers called in `wanted` are watched, or all of them, and `blocks`.

        `first` is the number of the first batch: what is drawn for a batch depends on its own number alone.
        """
        self._model, self._batches, self._loss, self._first = loss.model, batches, loss, first
        # Behind quantized layers an expert gets other tokens than here.
        own = [layer.name for layer in layers if not layer.expert and (wanted is None or layer.name in wanted)]
        watched = [name for name in own if module_class(loss.model.get_submodule(name)) in _KINDS]
        self._seen: dict[str, list[list[Tensor]]] = {name: [] for name in (*watched, *blocks)}
        self._differentiable = True

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[None]:
        """Yield after each batch."""
        with self._loss.differentiated(by_rows=not self._loss.heads.keys() & self._seen.keys()) as go_back:
            for number, batch in enumerate(self._batches, self._first):
                for calls in self._seen.values():
                    calls.append([])
                if self._differentiable:
                    with _listening(self._model, self._seen):
                        self._differentiable = go_back(number, batch) is not None
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


@contextmanager
def _listening(model: nn.Module, seen: Mapping[str, list[list[Tensor]]]) -> Iterator[None]:
    """Keep the mean squares of the gradients at the outputs of layers and blocks, in the last list of each."""

    def keep(name: str, slope: Tensor) -> None:
        seen[name][-1].append(features_last(slope.float()).square().mean(-1).reshape(-1))

    def left(name: str, module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
        own = hidden(output)
        if not torch.is_grad_enabled() or own is None or not own.is_floating_point():
            return output
        if not own.requires_grad and own is output:
            # The first layers of the model; a copy, since what follows may write into it.
            output = own = own.detach().requires_grad_().clone()
        if own.requires_grad:
            own.register_hook(partial(keep, name))
        return output

    with ExitStack() as hooks:
        for name in seen:
            hooks.callback(modules_in(model, name)[-1].register_forward_hook(partial(left, name)).remove)
        yield
