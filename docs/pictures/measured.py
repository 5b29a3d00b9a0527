"""Pictures of measured errors: scales that are quantized too, and clipping."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from canvas import TIMES, Axes, Canvas

from fewbit.evaluation.fidelity import fidelity
from fewbit.formats.minifloat import E4M3
from fewbit.formats.power_of_two import PowerOfTwo
from fewbit.numerics.groups import box_axes, split
from fewbit.qtensor import quantize
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.fixed import Fixed
from fewbit.schemes.block_formats import MXFP4, NF4_DOUBLE, NVFP4
from fewbit.schemes.granularity import PerTensor
from fewbit.schemes.notation import parse_scheme
from fewbit.schemes.scheme import Scheme
from samples import drawn

#: NVFP4 without its second level: e4m3 scales as they are.
ONE_LEVEL = replace(
    NVFP4, scale_scheme=Scheme(format=E4M3, granularity=PerTensor(), range_method=Fixed(448.0), scale_type="float32")
)
#: MXFP4 with the scale of the specification's example: amax / scale lies between 4 and 8, and 8 / 6 begins the next.
TRUNCATED = replace(
    MXFP4, scale_scheme=Scheme(format=PowerOfTwo(8.0 / 6.0), granularity=PerTensor(), range_method=Fixed(1.0))
)
#: What to call a scheme, the scheme, and the style of its line.
QUANTIZED_SCALES = (
    ("nvfp4: two levels", NVFP4, "stroke-c0 thick"),
    ("nf4-double: two levels", NF4_DOUBLE, "stroke-c2 thick dashed"),
    ("mxfp4: powers of two", MXFP4, "stroke-c3 thick"),
    ("e2m1 g16: e4m3 alone", ONE_LEVEL, "stroke-c1 thick"),
)


def decibels(values: np.ndarray, scheme: Scheme) -> float:
    """Return the ratio of signal to quantization noise."""
    return fidelity(values, quantize(values, scheme).dequantize()).sqnr


def scales() -> Canvas:
    """Return what MX scales do to the largest magnitude, and errors by the magnitude of the weights."""
    canvas = Canvas(
        860, 374, "Scales that are quantized too",
        "Left: the largest magnitude of a group divided by its MXFP4 scale, for fewbit's rule and for truncation. "
        "Right: signal to noise by the magnitude of the weights; a single e4m3 scale fails below 0.01.",
    )  # fmt: skip
    _largest(Axes(canvas, (40, 70, 336, 244), (4.0, 16.0), (3.0, 8.4)))
    _by_magnitude(Axes(canvas, (448, 70, 388, 244), (1.5, 0.7e-7), (0.0, 24.0), log_x=True))
    return canvas


def _largest(axes: Axes) -> None:
    axes.heading("mxfp4: amax / scale", "above 6, the largest e2m1, it is clipped")
    axes.x_ticks([(amax, f"{amax}") for amax in (4, 6, 8, 12, 16)], "amax of the group")
    axes.y_ticks([(ratio, f"{ratio}") for ratio in (3, 4, 5, 6, 7, 8)])
    axes.curve([4.0, 16.0], [6.0, 6.0], "stroke-dim dashed")
    amax = np.linspace(4.0, 15.99, 400, dtype=np.float32)
    rules = (("truncated", TRUNCATED, "stroke-c1 thick"), ("fewbit", MXFP4, "stroke-c0 thick dashed"))
    for _, scheme, style in rules:
        scale = quantize(np.repeat(amax[:, None], 32, 1), scheme).scale_values()[:, 0]
        ratio = (amax / scale).astype(np.float64)
        jumps = np.flatnonzero(np.diff(ratio) < -1.0) + 1
        axes.curve(np.insert(amax.astype(np.float64), jumps, np.nan), np.insert(ratio, jumps, np.nan), style)
    axes.canvas.legend(172, 96, [(style, words) for words, _, style in rules])


def _by_magnitude(axes: Axes) -> None:
    axes.heading("signal to quantization noise, dB", f"normal weights, 64 {TIMES} 512")
    powers = np.arange(0.0, 7.01, 0.25)
    axes.x_ticks(
        [(10.0**-power, "1" if power == 0 else "10⁻" + "⁰¹²³⁴⁵⁶⁷"[power]) for power in range(8)], "rms of the weights"
    )
    axes.y_ticks([(value, f"{value}") for value in (0, 5, 10, 15, 20)])
    base = drawn("normal")
    for _, scheme, style in QUANTIZED_SCALES:
        found = [decibels(base * np.float32(10.0**-power), scheme) for power in powers]
        axes.curve([10.0**-power for power in powers], found, style)
    axes.canvas.legend(672, 196, [(style, words) for words, _, style in QUANTIZED_SCALES])


def clipping() -> Canvas:
    """Return the error of symmetric integers by how much of the largest magnitude is covered."""
    canvas = Canvas(
        860, 384, "Squared error by clipping factor",
        "Signal to noise of int2, int3, int4 and int8 groups of 128 when the range covers 0.3 to 1.2 of the largest "
        "magnitude, on normal and on Student-t weights; the best factor is marked.",
    )  # fmt: skip
    for column, kind in enumerate(("normal", "Student-t(4)")):
        axes = Axes(canvas, (40 + 418 * column, 46, 376, 284), (0.25, 1.25), (0.0, 46.0))
        axes.heading(f"{kind} weights, g128: signal to noise, dB")
        axes.x_ticks([(x, f"{x:g}") for x in (0.4, 0.6, 0.8, 1.0, 1.2)], "clipping factor: range / largest magnitude")
        axes.y_ticks([(y, f"{y}") for y in (0, 10, 20, 30, 40)])
        values = drawn(kind)
        for number, bits in enumerate((8, 4, 3, 2)):
            factors, found = clipped(values, bits)
            best = int(np.argmax(found))
            axes.curve(factors, found, f"stroke-c{number} thick")
            axes.dots(factors[best : best + 1], found[best : best + 1], 4, f"fill-c{number}")
            axes.note(1.205, found[-1] + 1.0, f"int{bits}")
            axes.note(
                factors[best], found[best] + (1.3 if bits > 2 else -3.4), f"{factors[best]:.2f}", "fill-dim middle"
            )
    return canvas


def clipped(values: np.ndarray, bits: int) -> tuple[list[float], list[float]]:
    """Return clipping factors and the SQNR in dB that they leave under symmetric groups of 128."""
    scheme = parse_scheme(f"int{bits} g128")
    boxes = split(values, scheme.granularity.box(values.shape))
    axes = box_axes(values.ndim)
    low, high = AbsMax()(boxes, axes)
    factors = [0.3 + 0.01 * step for step in range(91)]
    signal = float(np.sum(values.astype(np.float64) ** 2))
    errors = [
        scheme.grid.error(boxes, low * np.float32(f), high * np.float32(f), axes, None).astype(np.float64).sum()
        for f in factors
    ]
    return factors, [float(10.0 * np.log10(signal / error)) for error in errors]
