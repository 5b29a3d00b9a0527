"""A graph as transforms see it: its links, statistics of what its layers get, weights to be rescaled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.frontends.onnx.absorption import Absorption
from fewbit.frontends.onnx.batches import Numbers
from fewbit.frontends.onnx.calibration import CalibrationRun
from fewbit.frontends.onnx.channel_scaling import Changes, exchange, input_magnitudes
from fewbit.frontends.onnx.links import Fold, find_folds
from fewbit.frontends.onnx.magnitudes import value_extremes
from fewbit.interfaces import Layer
from fewbit.onnx_graph.live import OnnxModel
from fewbit.transforms.folded_scope import FoldedScope
from fewbit.transforms.link import Factors


class LinkScope(FoldedScope[Fold]):
    """The whole of a graph, float still; see `fewbit.transforms.scope.Scope`."""

    def __init__(self, model: OnnxModel, layers: Sequence[Layer], batches: Sequence[Any]) -> None:
        self._model, self._batches = model, batches
        self._layers = {layer.name: layer for layer in layers}
        super().__init__(self._layers)
        #: What each constant was at first.
        self._before: dict[ir.Value, ir.TensorProtocol] = {}

    @property
    def name(self) -> str:
        """Empty: it has no blocks."""
        return ""

    @cached_property
    def _folds(self) -> tuple[Fold, ...]:
        return find_folds(self._model, self._batches)

    def output_magnitudes(self, layer: str) -> Factors:
        """Return the largest magnitude of the weights of each output channel, (outputs,)."""
        found: Factors = np.abs(self.weight(layer)).max(axis=1).astype(np.float64)
        return found

    def input_magnitudes(self, layer: str) -> Factors:
        """Return the largest magnitude of the weights that read each input channel, (inputs,)."""
        return input_magnitudes(self._model.found[layer])

    def weight(self, layer: str) -> Numbers:
        """Return the weight of a layer as it now is, (out, in)."""
        own = self._model.found[layer]
        assert own.weight.const_value is not None
        return own.arrangement.matrix(own.weight.const_value.numpy())

    def statistics(self, wanted: Mapping[str, Sequence[str]]) -> Mapping[str, Mapping[str, Any]]:
        """Return statistics by name of what layers are given in the float graph."""
        layers = [self._layers[name] for name in wanted]
        run = CalibrationRun(self._model, layers, wanted, self._batches, sequential=False)
        parts = [part for stage in run for part in stage]
        return {name: own for part in parts for name, own in part.statistics.items()}

    def _absorbed(self, fold: Fold, shift: Factors) -> tuple[float, Changes] | str:
        extremes = value_extremes(self._model, self._batches[:1]).get(fold.producer.result.name or "", (0.0, 0.0))
        found = Absorption(self._model, self._batches).absorb(fold, shift, max(map(abs, extremes)))
        self._model.ready.clear()
        return found

    def _remember(self, before: Changes) -> None:
        for value, tensor in before:
            self._before.setdefault(value, tensor)
        self._model.ready.clear()

    def restorer(self) -> Callable[[], None]:
        """Return what gives every constant back its numbers."""
        return partial(_restore, self._model, self._before)


def _restore(model: OnnxModel, before: Mapping[ir.Value, ir.TensorProtocol]) -> None:
    exchange(before.items())
    model.ready.clear()
