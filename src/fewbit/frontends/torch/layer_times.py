"""How long layers take on the inputs that a batch gives them, float and quantized: once for each shape and scheme.

A layer of the same class, shapes and scheme as one before takes as long as that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from fewbit.evaluation.latency import steadily
from fewbit.frontends.torch.calls import Call, evaluating, run_batch, shapes
from fewbit.frontends.torch.replacement import TorchReplacement
from fewbit.interfaces import Activations, Layer
from fewbit.qtensor import QTensor


class LayerTimes:
    """Median seconds of layers of a model on one batch."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer], batch: Any) -> None:
        """Run the model once, and keep what one layer of each shape is given."""
        self._model = model
        self._calls: dict[Any, Call] = {}
        self._kinds: dict[str, Any] = {}
        self._known: dict[Any, float] = {}
        self._times: dict[str, int] = {}
        with ExitStack() as hooks:
            for layer in layers:
                module = model.get_submodule(layer.name)
                hooks.callback(module.register_forward_pre_hook(partial(self._enter, layer), with_kwargs=True).remove)
            run_batch(model, batch, every_score=True)
        #: Seconds of the whole float model.
        self.whole = steadily([partial(run_batch, model, batch, every_score=True)])[0]

    def _enter(self, layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        kind = (type(module), layer.shape, layer.stored, layer.bias, shapes((args, dict(kwargs))))
        self._calls.setdefault(kind, Call(args, kwargs).copy())
        self._kinds[layer.name] = kind
        self._times[layer.name] = self._times.get(layer.name, 0) + 1

    def of(self, layer: Layer, scheme: str, qtensor: QTensor | None, activations: Activations | None = None) -> float:
        """Return what a layer takes in a run, float without a `qtensor`; 0 where the batch does not reach it."""
        kind = self._kinds.get(layer.name)
        if kind is None:
            return 0.0
        key = (kind, scheme)
        if key not in self._known:
            self._known[key] = self._measured(layer, self._calls[kind], qtensor, activations)
        return self._known[key] * self._times[layer.name]

    def knows(self, layer: Layer, scheme: str) -> bool:
        """Whether nothing has to be measured for a layer under this scheme."""
        kind = self._kinds.get(layer.name)
        return kind is None or (kind, scheme) in self._known

    @torch.no_grad()
    def _measured(self, layer: Layer, call: Call, qtensor: QTensor | None, activations: Activations | None) -> float:
        module: nn.Module = self._model.get_submodule(layer.name)
        if qtensor is not None:
            module = TorchReplacement(self._model, layer, qtensor, activations or Activations()).quantized
        with evaluating(module):
            return steadily([partial(module, *call.args, **call.kwargs)])[0]
