"""A rounding while it is learned: how far up between its two levels each weight is, made hard in the end.

h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1), w' = lower + (upper - lower) h, zeta = 1.1, gamma = -0.1. Steps by
Adam on the loss plus `annealing.py`. Source: AdaRound, arXiv 2004.10568, equations 21 to 24.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit.algorithms.annealing import Annealing
from fewbit.algorithms.neighbours import Neighbours
from fewbit.qtensor import QTensor

_ZETA, _GAMMA = 1.1, -0.1
#: Of Adam: how slowly both means forget, and what keeps a division from one by 0.
_SLOW, _SLOWER, _LEAST = 0.9, 0.999, 1e-8
#: How far from the middle a rounding starts on the side of its start, where the weight lies on the other.
_MARGIN = 0.05


class SoftRounding:
    """Variables of a weight (out, in); at first it is itself, up to what lies beyond the levels."""

    def __init__(self, neighbours: Neighbours, annealing: Annealing) -> None:
        self.neighbours, self._annealing = neighbours, annealing
        self._lower, upper = neighbours.values()
        self._gap = upper - self._lower
        share = _on_the_side_of_its_start(neighbours)
        self._variable = -torch.log((_ZETA - _GAMMA) / (share - _GAMMA) - 1.0)
        self._mean, self._square = torch.zeros_like(share), torch.zeros_like(share)
        self._step = 0
        self._open()

    def value(self) -> Tensor:
        """Return the weight (out, in) as it now is."""
        value: Tensor = torch.addcmul(self._lower, self._gap, self._height)
        return value

    def qtensor(self) -> QTensor:
        """Return it with every rounding made hard."""
        return self.neighbours.chosen(self._height >= 0.5)

    def move(self, slope: Tensor) -> None:
        """Take a step, given the gradient (out, in) of the loss by the value.

        The loss counts in the error that rounding to nearest leaves, a weight of mean share being 1.
        """
        slope = slope * self._gap
        if (exponent := self._annealing.exponent(self._step)) is not None:
            away = self._height.mul(2.0).sub_(1.0)
            pull = away.abs().pow_(exponent - 1.0).mul_(away.sign_())
            slope.sub_(pull, alpha=2.0 * exponent * self._annealing.regularization)
        # Where it is clipped, nothing moves it; the derivative of the sigmoid is s (1 - s).
        inside = (self._height > 0.0) & (self._height < 1.0)
        slope.mul_(torch.addcmul(self._sigmoid, self._sigmoid, self._sigmoid, value=-1.0)).mul_(inside)
        self._adam(slope.mul_(_ZETA - _GAMMA))
        self._open()

    def _adam(self, slope: Tensor) -> None:
        self._step += 1
        self._mean.mul_(_SLOW).add_(slope, alpha=1.0 - _SLOW)
        self._square.mul_(_SLOWER).addcmul_(slope, slope, value=1.0 - _SLOWER)
        # Both means begin at 0, which a share of their weights makes up for.
        root = (self._square / (1.0 - _SLOWER**self._step)).sqrt_().add_(_LEAST)
        self._variable.addcdiv_(self._mean, root, value=-self._annealing.rate / (1.0 - _SLOW**self._step))

    def _open(self) -> None:
        self._sigmoid = torch.sigmoid(self._variable)
        self._height = self._sigmoid.mul(_ZETA - _GAMMA).add_(_GAMMA).clamp_(0.0, 1.0)


def _on_the_side_of_its_start(neighbours: Neighbours) -> Tensor:
    """Return the shares, those that the start rounds the other way put just beyond the middle."""
    share, codes = neighbours.share, neighbours.start.codes
    two = neighbours.lower != neighbours.upper
    up = torch.where(two & (codes == neighbours.upper), share.clamp(min=0.5 + _MARGIN), share)
    down = two & (codes == neighbours.lower) & (up > 0.5)
    return torch.where(down, 0.5 - _MARGIN, up)
