"""Rotate values inside each head of a graph, and the columns of the output projection back.

Attention mixes tokens, not the channels of a head, so W_v -> Q^T W_v and W_o -> W_o Q. How many channels a head has is
the largest size under which the nodes from the one to the other put out the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewbit.frontends.onnx.channel_scaling import Changes, Producer, exchange
from fewbit.frontends.onnx.constant import numbers_of, own_constant, tensor_like
from fewbit.frontends.onnx.links import Fold, LocalRun, walk_folds
from fewbit.frontends.onnx.output_change import CLEARLY, output_change, same
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.live import OnnxModel
from fewbit.transforms.rotation import head_sizes

#: Roundings by which what the readers put out may differ.
_ROUNDINGS = 2.0**8


@dataclass(slots=True)
class HeadRotation:
    """Rotates along link after link; what holds of one is tried first on the next that is alike."""

    #: Orthogonal float64 matrix of a width.
    matrix: Callable[[int], np.ndarray[Any, np.dtype[np.float64]]]
    #: Layers whose outputs were rotated.
    count: int = 0
    #: Channels of a head by the last part of the name and the width of a layer; 0: there are none.
    _sizes: dict[tuple[str, int], int] = field(default_factory=dict)

    def rotate(self, model: OnnxModel, batch: Any) -> None:
        """Rotate along the links of `model` that are found to lead through heads, in place."""
        for fold, local in walk_folds(model, [batch], _makes_rows):
            key = fold.link.producer.split(".")[-1], fold.link.outputs
            known = self._sizes.get(key)
            expected = local.outputs()
            for size in head_sizes(fold.link.channels) if known is None else [known] if known else []:
                if self._rotated(fold, local, size, expected):
                    self._sizes[key] = size
                    self.count += 1
                    break
            else:
                self._sizes.setdefault(key, 0)
        model.ready.clear()

    def _rotated(self, fold: Fold, local: LocalRun, size: int, expected: dict[str, Any]) -> bool:
        """Whether heads have this size, and are rotated now."""
        rows, columns = self._turned(fold, size)
        undo = exchange(rows)
        wrong = output_change(expected, local.outputs())  # the values alone
        undo = [*exchange(columns), *undo]
        found = local.outputs()
        if same(expected, found, _ROUNDINGS) and CLEARLY * output_change(expected, found) < wrong:
            return True
        exchange(undo)
        return False

    def _turned(self, fold: Fold, size: int) -> tuple[Changes, Changes]:
        """Return what the producer and what the consumers become."""
        link, own, turn = fold.link, fold.producer.layer, self.matrix(size)
        assert own is not None
        starts = np.unique(link.channels[::size])
        weight = own.arrangement.matrix(numbers_of(own.weight)).astype(np.float64)
        weight = _heads_turned(weight.T, starts, turn).T
        rows: Changes = [(own.weight, tensor_like(own.weight, own.arrangement.stored(weight)))]
        for node, place in fold.producer.vectors:
            value = own_constant(node, place)
            bias = _heads_turned(numbers_of(value).astype(np.float64), starts, turn)
            rows.append((value, tensor_like(value, bias)))
        columns: Changes = []
        for consumer in fold.consumers:
            whole = consumer.arrangement.matrix(numbers_of(consumer.weight)).astype(np.float64)
            made = (whole.reshape(len(whole), -1, size) @ turn).reshape(whole.shape)
            columns.append((consumer.weight, tensor_like(consumer.weight, consumer.arrangement.stored(made))))
        return rows, columns


def _heads_turned(values: Any, starts: Any, turn: Any) -> Any:
    """Return values (..., channels) with the channels of each head, which begin at `starts`, turned."""
    made = values.copy()
    for first in starts:
        own = slice(int(first), int(first) + len(turn))
        made[..., own] = values[..., own] @ turn
    return made


def _makes_rows(producer: Producer) -> bool:
    return producer.layer is not None and not isinstance(producer.layer.arrangement, Kernel)
