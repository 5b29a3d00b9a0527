"""A loss that a float model has without any labels, and its gradient: what curvature is estimated by.

Of a language model the loss is the cross-entropy of labels drawn from its own predictions, whose squared gradients are
in the mean the curvature of the KL divergence; of another model a random projection of its output, likewise for the
squared error. Blocks are run again on the way back, and scores are taken some rows at a time where that is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewbit.frontends.torch.blocks import find_blocks
from fewbit.frontends.torch.calls import run_with_gradients, scores_of
from fewbit.frontends.torch.forward_attribute import get_forward, set_forward
from fewbit.frontends.torch.head_rows import send_back, withheld
from fewbit.frontends.torch.resident_memory import read_by_turns
from fewbit.interfaces import Layer

#: Rows that labels are drawn for together: their sums take as much memory as the scores.
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class LossGradient:
    """A model, and what its loss is."""

    model: nn.Module
    #: Dotted paths of the blocks that are run again.
    blocks: tuple[str, ...]
    #: Widths of outputs that are scores of labels, by the layers that make them.
    heads: Mapping[str, int]

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[Layer]) -> LossGradient:
        """Return it for a model with these layers."""
        blocks = tuple(block.name for block in find_blocks(model, layers).blocks)
        return cls(model, blocks, {layer.name: layer.shape[0] for layer in layers if layer.kind == "head"})

    @contextmanager
    def differentiated(self, *, by_rows: bool = False) -> Iterator[Callable[[int, Any], Tensor | None]]:
        """Return what runs the model on the batch of a number and the gradient back.

        It returns the output, or what stands for it, and `None` without a gradient. What is drawn depends on the number
        alone. With `by_rows` a head is not called, and where that cannot be the first batch goes forward twice.
        """
        by_rows = by_rows and len(self.heads) == 1

        def go_back(number: int, batch: Any) -> Tensor | None:
            nonlocal by_rows
            draw = torch.Generator().manual_seed(number)
            seen = self._withheld(batch) if by_rows else None
            by_rows = seen is not None  # for the batches to come too
            try:
                return self._at_once(batch, draw) if seen is None else self._by_rows(seen, draw)
            except RuntimeError as error:  # of an operator without gradient, or of what is written over
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                return None

        modules = [self.model.get_submodule(name) for name in self.blocks]
        with frozen(self.model), read_by_turns(modules), _run_again(modules):
            yield go_back

    def labelled(self, scores: Tensor) -> bool:
        """Whether they are scores of labels; else the loss is a projection, of curvature 1 in every number."""
        return scores.shape[-1] in self.heads.values()

    def _withheld(self, batch: Any) -> tuple[Tensor, Tensor] | None:
        """Return what the head is given, and what stands for its scores; `None`: those are not the model's output."""
        [name] = self.heads
        try:
            with withheld(self.model.get_submodule(name)) as seen:
                found = scores_of(run_with_gradients(self.model, batch))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a model does with scores that are none
            return None
        given = seen.given(found)
        return None if found is None or given is None or not given.requires_grad else (given, found)

    def _by_rows(self, seen: tuple[Tensor, Tensor], draw: torch.Generator) -> Tensor:
        [name] = self.heads
        send_back(self.model.get_submodule(name), seen[0], partial(loss_slope, draw=draw, labelled=True))
        return seen[1]

    def _at_once(self, batch: Any, draw: torch.Generator) -> Tensor | None:
        scores = scores_of(run_with_gradients(self.model, batch))
        if scores is None or not scores.requires_grad:
            return None
        scores.backward(loss_slope(scores.detach(), draw, labelled=self.labelled(scores)))  # type: ignore[no-untyped-call]
        return scores


def loss_slope(scores: Tensor, draw: torch.Generator, *, labelled: bool) -> Tensor:
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
def frozen(model: nn.Module) -> Iterator[None]:
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
def _run_again(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Have the modules keep their inputs alone; what is inside of one comes again on the way back."""
    with ExitStack() as undo:
        for module in modules:
            undo.callback(set_forward, module, get_forward(module))
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
        yield
