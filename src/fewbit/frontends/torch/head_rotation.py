"""Rotate values inside each head, and the columns of the output projection back.

Attention mixes tokens, not the channels of a head, so W_v -> Q^T W_v and W_o -> W_o Q. How many channels a head has is
the largest size under which the block's output stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from fewbit.frontends.torch.calls import copied, same
from fewbit.frontends.torch.channel_scaling import Changes, exchange, parameter_like, stored_weight
from fewbit.frontends.torch.layers import canonical_weight
from fewbit.frontends.torch.links import Fold
from fewbit.frontends.torch.output_change import CLEARLY, output_change
from fewbit.transforms.rotation import head_sizes

#: Roundings by which the output of a block may differ.
_ROUNDINGS = 2.0**8


@dataclass(slots=True)
class HeadRotation:
    """Rotates block after block; what holds of one block is tried first in the next."""

    model: nn.Module
    #: Orthogonal float64 matrix of a width.
    matrix: Callable[[int], np.ndarray[Any, np.dtype[np.float64]]]
    #: Layers whose outputs were rotated.
    count: int = 0
    #: Channels of a head by the last part of the name and the width of a layer; 0: there are none.
    _sizes: dict[tuple[str, int], int] = field(default_factory=dict)

    def rotate(self, folds: Sequence[Fold], run: Callable[[], Any]) -> Changes:
        """Rotate along the links of a block that are found to lead through heads; return what the modules had."""
        before: Changes = []
        expected = copied(run())
        for fold in folds:
            key = fold.link.producer.split(".")[-1], fold.link.outputs
            known = self._sizes.get(key)
            for size in head_sizes(fold.link.channels) if known is None else [known] if known else []:
                turned = self._turned(fold, size)
                undo = exchange(turned[:1])
                wrong = output_change(expected, run())  # the values alone
                exchange(undo)
                undo = exchange(turned)
                found = run()
                if same(expected, found, _ROUNDINGS) and CLEARLY * output_change(expected, found) < wrong:
                    before = [*undo, *before]
                    self._sizes[key] = size
                    self.count += 1
                    break
                exchange(undo)
            else:
                self._sizes.setdefault(key, 0)
        return before

    @torch.no_grad()
    def _turned(self, fold: Fold, size: int) -> Changes:
        link = fold.link
        producer: Any = self.model.get_submodule(link.producer)
        turn = torch.from_numpy(self.matrix(size)).to(producer.weight.device)
        weight = canonical_weight(producer).double().clone()
        bias = None if producer.bias is None else producer.bias.double().clone()
        for first in np.unique(link.channels[::size]):
            own = slice(int(first), int(first) + size)
            weight[own] = turn.T @ weight[own]
            if bias is not None:
                bias[own] = bias[own] @ turn
        made = {"weight": stored_weight(producer, weight)}
        if bias is not None:
            made["bias"] = parameter_like(producer.bias, bias)
        changes: Changes = [(producer, made)]
        for name in link.consumers:
            consumer: Any = self.model.get_submodule(name)
            columns = canonical_weight(consumer).double()
            heads = columns.reshape(len(columns), -1, size) @ turn
            changes.append((consumer, {"weight": stored_weight(consumer, heads.reshape(columns.shape))}))
        return changes
