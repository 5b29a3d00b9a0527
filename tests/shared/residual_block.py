"""A residual block of two linear layers as block algorithms are given it, and rows for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fewbit.algorithms.block import Block
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class ResidualBlock:
    """x + down(relu(up(x))), with weights that are normal but for two divisors."""

    def __init__(self, width: int, hidden: int, divisors: tuple[int, int], text: str) -> None:
        """Make the weights; blocks are rounded to nearest under `text` unless told otherwise."""
        self.weights = {"up": draw(hidden, width) / divisors[0], "down": draw(width, hidden, seed=1) / divisors[1]}
        self._mixed, self._width, self._text = draw(width, width, seed=99) / divisors[0], width, text

    def inputs(self, seed: int, count: int = 8) -> list[Tensor]:
        """Return samples of 24 rows whose channels are correlated."""
        return [draw(24, self._width, seed=seed + number) @ self._mixed + 0.5 for number in range(count)]

    @staticmethod
    def forward(weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Return the output under some weights."""
        return rows + torch.relu(rows @ weights["up"].T) @ weights["down"].T

    def block(
        self,
        text: str | None = None,
        *,
        count: int = 8,
        run: Callable[[Mapping[str, Tensor], Tensor], Any] | None = None,
    ) -> Block:
        """Return it with samples; `run` is what computes its output in the place of `forward`."""
        rows, scheme, computed = self.inputs(10, count), parse_scheme(text or self._text), run or self.forward
        return Block(
            forward=lambda weights, sample: computed(weights, rows[sample]),
            targets=[self.forward(self.weights, own) for own in rows],
            weights=self.weights,
            starts={name: quantize(weight, scheme) for name, weight in self.weights.items()},
        )
