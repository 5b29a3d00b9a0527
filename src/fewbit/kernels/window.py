"""How a convolution reads its input: the window that slides over it, as a kernel needs to know it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A window; sizes by spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    #: Zeros before and behind each axis; `None`: something else, such as copies of the edge.
    padding: tuple[tuple[int, int], ...] | None
    #: Into how many parts the channels fall that have nothing to do with one another.
    groups: int
    transposed: bool = False
    #: Whether outputs have the channels of a position side by side in memory whatever inputs have.
    channels_last: bool = False

    def with_two_axes(self) -> Window:
        """Return this window for inputs that have got an axis of size 1 before their only one."""
        if len(self.kernel) > 1 or self.padding is None:
            return self
        return replace(
            self,
            kernel=(1, *self.kernel),
            stride=(1, *self.stride),
            dilation=(1, *self.dilation),
            padding=((0, 0), *self.padding),
        )

    def products(self, shape: tuple[int, int]) -> float:
        """Return how many products there are for each number of input and output, for a weight of `shape`.

        >>> Window(kernel=(3, 3), stride=(1, 1), dilation=(1, 1), padding=None, groups=8).products((8, 9))
        4.5
        """
        outputs, width = shape
        inputs = width // prod(self.kernel) * self.groups * prod(self.stride)
        return outputs * width / (inputs + outputs)
