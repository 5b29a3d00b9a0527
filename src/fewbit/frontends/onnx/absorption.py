"""Biases moved along a link of a graph: b1 - c and b2 + W2 c, where runs prove that this is a shift and nothing else.

With b1 raised until all numbers are above c, an activation such as Relu passes them: the output must stay, and with
the c of other channels it must not. A convolution that pads with zeros fails: its border got no c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.frontends.onnx.batches import Numbers
from fewbit.frontends.onnx.channel_scaling import Changes, by_input, exchange
from fewbit.frontends.onnx.constant import numbers_of, own_constant, tensor_like
from fewbit.frontends.onnx.links import Fold
from fewbit.frontends.onnx.output_change import CLEARLY, output_change, same
from fewbit.frontends.onnx.trial_run import TrialRun
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import OnnxModel
from fewbit.transforms.high_bias_absorption import NO_BIAS, NO_SHIFT, ROUNDINGS, trial_of
from fewbit.transforms.link import Factors


class Absorption:
    """A graph with the batch on which changes of it are tried."""

    def __init__(self, model: OnnxModel, batches: Sequence[Any]) -> None:
        self._model, self._run = model, TrialRun(batches[0])

    def absorb(self, fold: Fold, shift: Factors, largest: float) -> tuple[float, Changes] | str:
        """Take `shift` (outputs,) off the producer's channels; return how far the output went, and what was there.

        `largest` is the largest magnitude that the producer puts out. A sentence says why nothing was changed.
        """
        assert fold.producer.layer is not None
        if any(own.bias_value is None for own in (fold.producer.layer, *fold.consumers)):
            return NO_BIAS
        if not self._is_exact(fold, largest):
            return NO_SHIFT
        before = self._outputs()
        undo = exchange(_biases(fold, shift, shift))
        return output_change(before, self._outputs()), undo

    def _is_exact(self, fold: Fold, largest: float) -> bool:
        trial = trial_of(fold.link, largest)
        if trial is None:
            return False
        above, shift = trial
        raised = exchange(_biases(fold, -above, None))
        try:
            expected = self._outputs()
            right, wrong = (self._trial(fold, shift, columns) for columns in (shift, 2.0 * np.roll(shift, 1)))
            close = same(expected, right, ROUNDINGS)
            return close and CLEARLY * output_change(expected, right) < output_change(expected, wrong)
        finally:
            exchange(raised)

    def _trial(self, fold: Fold, shift: Factors, columns: Factors) -> dict[str, Numbers]:
        """Return the outputs with biases moved, which is taken back."""
        undo = exchange(_biases(fold, shift, columns))
        try:
            return self._outputs()
        finally:
            exchange(undo)

    def _outputs(self) -> dict[str, Numbers]:
        """Return what the graph puts out with the constants that it has now."""
        self._model.ready.clear()
        return dict(self._run(self._model))


def _biases(fold: Fold, shift: Factors, columns: Factors | None) -> Changes:
    """Return the biases with `shift` taken off the producer, and with what `columns` make added to the consumers."""
    assert fold.producer.layer is not None
    changes = [_added(fold.producer.layer, -shift)]
    for own in fold.consumers if columns is not None else ():
        apart = by_input(own).astype(np.float64).sum(axis=3)
        spread = fold.link.spread(columns, otherwise=0.0).reshape(len(apart), -1, 1)  # type: ignore[arg-type]
        changes.append(_added(own, (apart @ spread).reshape(-1)))
    return changes


def _added(own: GraphLayer, numbers: Numbers) -> tuple[ir.Value, ir.TensorProtocol]:
    """Return the bias of a layer with `numbers` (outputs,) added, a constant of its own."""
    node = own.bias_add or own.node
    value = own_constant(node, 2 if own.bias_add is None else 1 - list(node.inputs).index(own.output))
    held = numbers_of(value)
    return value, tensor_like(value, held.astype(np.float64) + numbers.reshape(held.shape))
