"""The rows that a convolution multiplies: `patches(input) @ weight.T`, one sample after the other.

Columns are the input channels, each with its kernel positions in order; those of several groups lie side by side.
Source: onnx, Conv, version 11.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a Conv slides over its input; equal windows cut equal patches."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    #: Zeros before each spatial axis and behind it; `None`: by `auto_pad`.
    pads: tuple[tuple[int, int], ...] | None
    auto_pad: str
    #: Parts of a patch that are multiplied apart.
    groups: int = 1

    @classmethod
    def of(cls, node: ir.Node, kernel: tuple[int, ...], groups: int = 1) -> Window:
        """Return the window of a Conv node."""

        def numbers(name: str, usual: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(node.attributes[name].as_ints()) if name in node.attributes else usual

        ones = (1,) * len(kernel)
        pads = numbers("pads", (0,) * (2 * len(kernel)))
        auto_pad = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
        return cls(
            kernel=kernel,
            strides=numbers("strides", ones),
            dilations=numbers("dilations", ones),
            pads=tuple(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)) if auto_pad == "NOTSET" else None,
            auto_pad=auto_pad,
            groups=groups,
        )

    def rows(self, inputs: Numbers) -> Iterator[Numbers]:
        """Yield the patches of each sample of `inputs` (samples, channels, *space), (positions, channels * kernel)."""
        spatial = len(self.kernel)
        reach = tuple(step * (size - 1) + 1 for step, size in zip(self.dilations, self.kernel, strict=True))
        pads = self._pads(inputs.shape[2:], reach)
        axes = tuple(range(1, spatial + 1))
        steps: Any = (
            slice(None),
            *(slice(None, None, step) for step in self.strides),
            ...,
            *(slice(None, None, step) for step in self.dilations),
        )
        for sample in inputs:
            padded = np.pad(sample, ((0, 0), *pads))
            view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)[steps]
            # (channel, *position, *kernel) -> (position, channel * kernel)
            order = (*axes, 0, *range(spatial + 1, 2 * spatial + 1))
            positions = prod(view.shape[1 : spatial + 1])
            yield view.transpose(order).reshape(positions, sample.shape[0] * prod(self.kernel))

    def _pads(self, space: tuple[int, ...], reach: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        if self.pads is not None:
            return self.pads
        if self.auto_pad == "VALID":
            return ((0, 0),) * len(space)
        found = []
        for size, step, width in zip(space, self.strides, reach, strict=True):
            whole = max(0, (-(-size // step) - 1) * step + width - size)
            less = whole // 2
            found.append((less, whole - less) if self.auto_pad == "SAME_UPPER" else (whole - less, less))
        return tuple(found)
