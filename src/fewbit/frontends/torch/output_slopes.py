"""What an error of each layer's output costs: gradients there of the loss, or of random projections of the output.

cost(dW) = (1 / 2) sum over rows t of g_t |dW x_t|^2, g_t the mean square of the gradient of row t: the diagonal of the
Fisher information, which is the curvature of the KL divergence where labels are drawn from the model's own predictions;
of random projections of the output, twice that is the power of what the error adds to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.frontends.torch.calls import run_with_gradients, scores_of
from fewbit.frontends.torch.convolution import Convolution
from fewbit.frontends.torch.loss_gradient import frozen, loss_slope
from fewbit.frontends.torch.weighted_rows import WeightedPicks, WeightedRows
from fewbit.interfaces import Layer

#: Ways back for each batch, of other labels or projections.
_DRAWS = 2


class OutputSlopes:
    """Runs batches forward and gradients back; when it has been gone through, `rows` are there."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer], batches: Sequence[Any], *, labelled: bool) -> None:
        """Prepare; nothing runs yet. `labelled`: of a language model the loss of drawn labels, else projections."""
        self._model, self._batches, self._labelled = model, batches, labelled
        self._layers = {layer.name: layer for layer in layers}
        #: By layer; those that are missing are called nowhere, or their outputs are no rows of inputs times weights.
        self.rows: dict[str, WeightedRows | WeightedPicks] = {}
        #: The sum of the squares of the outputs, and how many predictions were made.
        self.power, self.predictions = 0.0, 0
        #: Why there are none.
        self.problem: str | None = None

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[None]:
        """Yield after each batch."""
        draw = torch.Generator().manual_seed(0)
        with frozen(self._model):
            for batch in self._batches:
                if self.problem is None:
                    self._back(batch, draw)
                yield

    def _back(self, batch: Any, draw: torch.Generator) -> None:
        try:
            with self._listening():
                output = run_with_gradients(self._model, batch)
                scores = scores_of(output)
                if scores is None or not scores.requires_grad:
                    self.problem = "the output of the model has no gradient"
                    return
                values = scores.detach()
                self.power += float(values.double().square().sum())
                self.predictions += values[..., 0].numel()
                for number in range(_DRAWS):
                    slope = loss_slope(values, draw, labelled=self._labelled)
                    scores.backward(slope / _DRAWS**0.5, retain_graph=number + 1 < _DRAWS)  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # of an operator without gradient, or of what is written over
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.problem = f"it cannot be differentiated: {str(error).splitlines()[0]:.120}"

    def _listening(self) -> ExitStack:
        hooks = ExitStack()
        for name in self._layers:
            hooks.callback(self._model.get_submodule(name).register_forward_hook(partial(self._left, name)).remove)
        return hooks

    def _left(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        if not torch.is_grad_enabled() or not args or not isinstance(output, Tensor):
            return output
        if not output.requires_grad:
            # The first layers of the model; a copy, since what follows may write into it.
            output = output.detach().requires_grad_().clone()
        output.register_hook(partial(self._take, name, module, args[0].detach()))
        return output

    @torch.no_grad()
    def _take(self, name: str, module: nn.Module, given: Tensor, slope: Tensor) -> None:
        layer, convolution = self._layers[name], Convolution.of(module)
        if layer.kind == "embedding":
            picks = self.rows.setdefault(name, WeightedPicks(torch.zeros(layer.shape[0], device=slope.device)))
            picks.add(given.reshape(-1), slope.float().square().mean(-1).reshape(-1))
            return
        if not layer.multiplies_rows:
            return
        rows = self.rows.setdefault(name, WeightedRows(layer.shape[1], layer.groups))
        if convolution is None:
            rows.add(given.reshape(-1, layer.shape[1]), slope.float().square().mean(-1).reshape(-1))
            return
        costs = convolution.channels_last(slope).float().square().mean(-1)
        samples = costs.reshape(-1, costs[0].numel()) if slope.ndim > len(convolution.kernel) + 1 else costs[None]
        for own, cost in zip(convolution.rows(given), samples, strict=True):
            rows.add(own, cost.reshape(-1))
