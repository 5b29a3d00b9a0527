"""Rotate the residual stream of a graph, found by its flow, and kept if the graph puts out the same.

An RMSNorm without gain commutes with every orthogonal Q, a LayerNorm with one that keeps the mean. Writers W -> Q^T W,
readers W -> W diag(gain) Q, constants c -> c Q. Source: SliceGPT, arXiv 2401.15024, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.frontends.onnx.batches import Numbers
from fewbit.frontends.onnx.channel_scaling import Changes, Producer, exchange, producer_of
from fewbit.frontends.onnx.constant import numbers_of, own_constant, tensor_like
from fewbit.frontends.onnx.head_rotation import HeadRotation
from fewbit.frontends.onnx.links import walk_folds
from fewbit.frontends.onnx.output_change import CLEARLY, output_change, same
from fewbit.frontends.onnx.residual_stream import ResidualStream, StreamError, StreamNorm
from fewbit.frontends.onnx.trial_run import TrialRun
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.constants import origin
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import OnnxModel
from fewbit.transforms import Applied
from fewbit.transforms.rotation import heads_sentence, stream_sentence

#: Orthogonal float64 matrix of a width, one that keeps the mean if asked.
MatrixOf = Callable[..., np.ndarray[Any, np.dtype[np.float64]]]
#: Roundings by which outputs may differ: those of every rotated weight go through the whole model.
_ROUNDINGS = 2.0**14


def rotate(model: OnnxModel, run: TrialRun, *, matrix: MatrixOf, heads: bool) -> Applied:
    """Rotate the residual stream, and values inside heads if asked; say what was rotated and what could not be."""
    before = model.graph, model.found
    rotated, turned = HeadRotation(matrix), _copied(model)
    expected = run(model)
    if heads:
        rotated.rotate(turned, run.batch)
        if rotated.count and not same(expected, run(turned), _ROUNDINGS):
            rotated, turned = HeadRotation(matrix), _copied(model)
    whole = _copied(turned)
    try:
        _untie(whole)
        sentence = _Rotation(whole, run, expected).rotated(matrix)
    except StreamError as error:
        sentence, whole = f"rotation: the residual stream is as it was: {error}", turned
    if whole is not turned or rotated.count:
        done = OnnxModel.of(whole.graph, model.path)
        model.graph, model.found = done.graph, done.found

    def restore() -> None:
        model.graph, model.found = before

    return Applied(sentences=(sentence, *([heads_sentence(rotated.count)] if rotated.count else [])), restore=restore)


def _copied(model: OnnxModel) -> OnnxModel:
    graph, found = model.copy()
    return OnnxModel(graph, model.path, found)


def _untie(model: OnnxModel) -> None:
    """Give heads that share the weight of an embedding one of their own, in place."""
    tied = [own for own in model.found.values() if own.layer.kind == "head" and own.layer.tied]
    for own in tied:
        value = own_constant(own.node, own.weight_index)
        value.const_value = ir.Tensor(np.array(numbers_of(value)), name=origin(value).name)
    if tied:
        again = OnnxModel.of(model.graph, model.path)
        model.found = again.found


@dataclass(slots=True)
class _Rotation:
    """A copy of a model whose stream is turned in place."""

    model: OnnxModel
    run: TrialRun
    expected: Any

    def rotated(self, matrix: MatrixOf) -> str:
        """Rotate, and return what to say; raises `StreamError` with the reason where it cannot be."""
        folds = [fold for fold, _ in walk_folds(self.model, [self.run.batch], _is_gain)]
        stream = ResidualStream.of(self.model, folds)
        turn = matrix(stream.width, keep_mean=stream.centred)
        undo = exchange(_readers_turned(stream.norms[:1], turn))
        wrong = self._change()  # one that reads alone
        exchange(undo)
        exchange(_scales_merged(stream))
        changes = [*_readers_turned(stream.norms, turn), *_plain_readers_turned(stream, turn)]
        exchange([*changes, *_writers_turned(stream, turn)])
        self.model.ready.clear()
        found = self.run(self.model)
        if not same(self.expected, found, _ROUNDINGS):
            raise StreamError("the rotated graph puts out something else")
        if not CLEARLY * output_change(self.expected, found) < wrong:
            raise StreamError("a wrong rotation leaves the outputs as they are too, so that no run shows a right one")
        return stream_sentence(stream.width, len(stream.norms), len(stream.writers), keep_mean=stream.centred)

    def _change(self) -> float:
        self.model.ready.clear()
        return output_change(self.expected, self.run(self.model))


def _is_gain(producer: Producer) -> bool:
    return producer.layer is None


def _scales_merged(stream: ResidualStream) -> Changes:
    """Return what moves a factor for each channel between a layer and the stream into the layer."""
    changes: Changes = []
    for node, place, own in stream.scales:
        value = own_constant(node, place)
        numbers = numbers_of(value)
        producer = producer_of(own.node, {id(own.node): own})
        assert producer is not None
        with np.errstate(divide="ignore"):  # a factor of 0: what is divided by infinity is 0
            changes += producer.divided(1.0 / numbers.reshape(-1).astype(np.float64))
        changes.append((value, tensor_like(value, np.ones_like(numbers))))
    return changes


def _readers_turned(norms: Sequence[StreamNorm], turn: Numbers) -> Changes:
    changes: Changes = []
    for norm in norms:
        gain = norm.fold.producer.gain()
        assert gain is not None
        for place, (node, index) in enumerate(norm.fold.producer.vectors):
            value = own_constant(node, index)
            held = numbers_of(value)
            # gain * x + shift = gain * (x + shift / gain); without a gain a channel has no place for its shift.
            with np.errstate(divide="ignore", invalid="ignore"):
                made = (held.reshape(-1).astype(np.float64) / gain) @ turn if place else np.ones(len(gain))
            changes.append((value, tensor_like(value, made.reshape(held.shape))))
        changes += [_columns_turned(reader, turn, gain) for reader in norm.fold.consumers]
    return changes


def _plain_readers_turned(stream: ResidualStream, turn: Numbers) -> Changes:
    return [_columns_turned(own, turn, np.ones(len(turn))) for own in stream.readers]


def _columns_turned(own: GraphLayer, turn: Numbers, gain: Numbers) -> tuple[ir.Value, ir.TensorProtocol]:
    matrix = own.arrangement.matrix(numbers_of(own.weight)).astype(np.float64)
    positions = own.arrangement.positions if isinstance(own.arrangement, Kernel) else 1
    # (out, tokens, channels, positions): what reads two tokens side by side has the channels twice.
    apart = matrix.reshape(len(matrix), -1, len(gain), positions).swapaxes(2, 3)
    made = ((apart * gain) @ turn).swapaxes(2, 3).reshape(matrix.shape)
    return own.weight, tensor_like(own.weight, own.arrangement.stored(made))


def _writers_turned(stream: ResidualStream, turn: Numbers) -> Changes:
    changes: Changes = []
    for own in stream.writers:
        matrix = own.arrangement.matrix(numbers_of(own.weight)).astype(np.float64)
        matrix = matrix @ turn if own.layer.kind == "embedding" else turn.T @ matrix
        changes.append((own.weight, tensor_like(own.weight, own.arrangement.stored(matrix))))
    for node, place, axis in stream.constants:
        value = own_constant(node, place)
        turned = np.moveaxis(numbers_of(value).astype(np.float64), axis, -1) @ turn
        changes.append((value, tensor_like(value, np.moveaxis(turned, -1, axis))))
    return changes
