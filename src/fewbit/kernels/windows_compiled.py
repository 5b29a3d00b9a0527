"""The passes around an integer convolution, compiled: inputs to codes with a border that stands for 0, sums to outputs.

code = clip(round(x / s) + z, qmin, qmax) - qmin, a byte; output = s (sum - (z - qmin) weight_sum) + bias.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbit.kernels.rows_compiled import INFINITE, LEAST, compiled_pass

#: Positions that are turned over at a time: what one vector holds.
_BLOCK = 16


@compiled_pass
def to_bytes(codes: Any, places: Any, values: Any, scale: Any, zero: Any, limits: Any) -> None:
    """Write lines of `codes` (lines, n): those of a line of `values`, and around them the one that stands for 0.

    `places` (lines, 2) have the line of `values`, or -1, and the sample; scale and zero point are one, or one a sample.
    `limits` are qmin, qmax, and how many codes there are before. A scale becomes NaN where a number has no code.
    """
    low, high, before = limits[0], limits[1], int(limits[2])
    for row in range(codes.shape[0]):
        line, written = places[row, 0], codes[row]
        place = places[row, 1] if len(scale) > 1 else 0
        own, border = zero[place], np.uint8(np.int32(zero[place] - low))
        if line < 0:
            written[:] = border
            continue
        read, bits = values[line], values[line].view(np.int32)
        inverse, largest = np.float32(1.0) / scale[place], np.int32(0)
        written[:before] = border
        written[before + len(read) :] = border
        inside = written[before : before + len(read)]
        for column in range(len(read)):
            largest = max(largest, bits[column] & np.int32(0x7FFFFFFF))
        for column in range(len(read)):
            value = read[column]
            value = value if abs(value) >= LEAST else np.float32(0.0)  # as the reference flushes
            # By way of int32, which a vector unit converts to.
            inside[column] = np.int32(min(max(np.rint(value * inverse) + own, low), high) - low)
        if largest > INFINITE:
            scale[place] = np.nan


@compiled_pass
def to_planes(blocks: Any, sums: Any, planes: Any, ranges: Any, channels: Any) -> None:
    """Write outputs `planes` (samples, out, positions) of `sums` (samples, positions, out), for some of the blocks.

    `ranges` (2, samples or 1) are scale and zero point, `channels` (2, out) the sums of the weight and the bias.
    """
    positions = sums.shape[1]
    per_sample = -(-positions // _BLOCK)
    for block in blocks:
        sample, start = block // per_sample, block % per_sample * _BLOCK
        place = sample if ranges.shape[1] > 1 else 0
        own, shift = ranges[0, place], ranges[1, place]
        for channel in range(sums.shape[2]):
            less, more = shift * channels[0, channel], channels[1, channel]
            if start + _BLOCK <= positions:
                for step in range(_BLOCK):  # a count that the compiler knows
                    planes[sample, channel, start + step] = own * (sums[sample, start + step, channel] - less) + more
            else:
                for position in range(start, positions):
                    planes[sample, channel, position] = own * (sums[sample, position, channel] - less) + more


def blocks_of(samples: int, positions: int) -> Any:
    """Return the blocks of positions that `to_planes` takes."""
    return np.arange(samples * -(-positions // _BLOCK))
