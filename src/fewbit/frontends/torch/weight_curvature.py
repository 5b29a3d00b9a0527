"""The trace of the Hessian in the weights of each layer, by Hutchinson: tr(H) = E[v^T H v] for random signs v.

The loss is the divergence of the model's output from what it is, whose gradient is 0 and whose Hessian is that of the
KL divergence, or of the squared error. One draw goes back through all layers at once; what they add to one another is 0
in the mean. Source: HAWQ-V2, arXiv 1911.03852.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewbit.frontends.torch.calls import run_with_gradients, scores_of
from fewbit.frontends.torch.loss_gradient import frozen
from fewbit.interfaces import Layer


class WeightCurvature:
    """Draws over batches; when it has been gone through, `traces` are there."""

    def __init__(
        self, model: nn.Module, layers: Sequence[Layer], batches: Sequence[Any], *, labelled: bool, draws: int
    ) -> None:
        """Prepare; nothing runs yet. `labelled`: the output are scores of tokens."""
        self._model, self._batches, self._labelled, self._draws = model, batches, labelled, draws
        self._layers = [layer.name for layer in layers]
        #: By layer, of the sum of the loss over predictions.
        self.traces: dict[str, float] = dict.fromkeys(self._layers, 0.0)
        self.power, self.predictions = 0.0, 0
        self.problem: str | None = None

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[None]:
        """Yield after each batch."""
        draw = torch.Generator().manual_seed(0)
        weights = {name: self._model.get_submodule(name).weight for name in self._layers}
        with frozen(self._model):
            # Tied weights are one parameter: its trace is that of both places together.
            distinct = list({id(own): own for own in weights.values()}.values())
            for own in distinct:
                own.requires_grad_(True)
            try:
                for batch in self._batches:
                    if self.problem is None:
                        self._add(batch, weights, distinct, draw)
                    yield
            finally:
                for own in distinct:
                    own.requires_grad_(False)

    def _add(self, batch: Any, weights: dict[str, Any], distinct: list[Any], draw: torch.Generator) -> None:
        try:
            # Only this form of attention can be differentiated twice.
            with sdpa_kernel(SDPBackend.MATH):
                output = run_with_gradients(self._model, batch)
            scores = scores_of(output)
            if scores is None or not scores.requires_grad:
                self.problem = "the output of the model has no gradient"
                return
            self.power += float(scores.detach().double().square().sum())
            self.predictions += scores[..., 0].numel()
            found = self._sums(_divergence(scores, labelled=self._labelled), distinct, draw)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.problem = f"it cannot be differentiated twice: {str(error).splitlines()[0]:.120}"
            return
        for name, own in weights.items():
            self.traces[name] += found.get(id(own), 0.0) / self._draws

    def _sums(self, loss: Tensor, distinct: list[Any], draw: torch.Generator) -> dict[int, float]:
        slopes = torch.autograd.grad(loss, distinct, create_graph=True, allow_unused=True)
        used = [(own, slope) for own, slope in zip(distinct, slopes, strict=True) if slope is not None]
        sums = {id(own): 0.0 for own, _ in used}
        for _ in range(self._draws):
            signs = [torch.randint(0, 2, own.shape, generator=draw).to(own) * 2 - 1 for own, _ in used]
            curved = torch.autograd.grad(
                [slope for _, slope in used], [own for own, _ in used], grad_outputs=signs, retain_graph=True
            )
            for (own, _), sign, product in zip(used, signs, curved, strict=True):
                sums[id(own)] += float((sign * product).sum(dtype=torch.float64))
        return sums


def _divergence(scores: Tensor, *, labelled: bool) -> Tensor:
    """Return half the squared error of the output from itself, or the cross-entropy under its own predictions."""
    if not labelled:
        return 0.5 * (scores - scores.detach()).square().sum()
    flat = scores.reshape(-1, scores.shape[-1]).float()
    return -(flat.detach().softmax(-1) * flat.log_softmax(-1)).sum()
