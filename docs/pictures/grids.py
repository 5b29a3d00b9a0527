"""Pictures of affine grids: their staircases, which numbers share a scale, and how values are rounded to them."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from canvas import MINUS, TIMES, Axes, Canvas, signed

from fewbit.formats.integer import INT4
from fewbit.numerics.groups import counts
from fewbit.numerics.noise import uniform
from fewbit.qtensor import fake_quantize, quantize
from fewbit.ranges.fixed import Fixed
from fewbit.schemes.granularity import Granularity, PerChannel, PerGroup, PerTensor, PerTile, PerToken
from fewbit.schemes.notation import parse_scheme
from fewbit.schemes.scheme import Scheme

#: Words of a scheme, and how its scale follows from the extremes.
AFFINE = (
    ("int4 tensor", "amax / 7.5"),
    ("int4 narrow tensor", "amax / 7"),
    ("int4 asym tensor", f"(max {MINUS} min) / 15"),
    ("int4 float-zero tensor", f"(max {MINUS} min) / 15"),
)
GRANULARITIES: tuple[tuple[Granularity, tuple[int, ...]], ...] = (
    (PerTensor(), (8, 16)),
    (PerChannel(), (8, 16)),
    (PerChannel(1), (8, 16)),
    (PerChannel(0, 4), (8, 16)),
    (PerGroup(4), (8, 16)),
    (PerGroup(6), (8, 16)),
    (PerTile(4, 8), (8, 16)),
    (PerToken(), (2, 4, 16)),
)


def affine() -> Canvas:
    """Return the staircases of one group on four grids, and the error under each."""
    canvas = Canvas(
        860, 424, "Four 4-bit grids of one group",
        "What int4 symmetric, narrow, asymmetric and with a float zero point make of the numbers from -1.2 to 1.2 when "
        "the group reaches from -0.6 to 1, and the error of each.",
    )  # fmt: skip
    group = np.asarray([[-0.6, 1.0]], np.float32)
    line = np.linspace(-1.2, 1.2, 961, dtype=np.float32)
    for column, (text, rule) in enumerate(AFFINE):
        scheme = parse_scheme(text)
        quantized = quantize(group, scheme)
        zero = None if quantized.zero_point is None else quantized.zero_point.astype(np.float32)[0, 0]
        became = scheme.grid.rounded(line, quantized.scale[0, 0], zero)
        left = 46 + 205 * column
        stairs = Axes(canvas, (left, 66, 184, 184), (-1.2, 1.2), (-1.2, 1.2))
        stairs.heading(text.removesuffix(" tensor"), f"scale = {rule}")
        stairs.band(-0.6, 1.0, "fill-c0 faint")
        stairs.x_ticks([(x, "") for x in (-1, 0, 1)])
        stairs.y_ticks([(y, signed(y) if column == 0 else "") for y in (-1, 0, 1)])
        stairs.curve([-1.2, 1.2], [-1.2, 1.2], "stroke-dim dashed")
        stairs.curve(line, became, "stroke-c0 thick")
        errors = Axes(canvas, (left, 268, 184, 82), (-1.2, 1.2), (-0.15, 0.15))
        errors.band(-0.6, 1.0, "fill-c0 faint")
        errors.x_ticks([(x, signed(x)) for x in (-1, 0, 1)])
        errors.y_ticks([(y, signed(y) if column == 0 else "") for y in (-0.1, 0, 0.1)])
        errors.curve(line, became - line, "stroke-c1 thick")
        inside = (line >= -0.6) & (line <= 1.0)
        spread = float(np.sqrt(np.mean((became - line)[inside].astype(np.float64) ** 2)))
        at_zero = "" if zero is None else f", zero point {signed(float(zero))}"
        canvas.text(left, 390, f"scale {float(quantized.scale[0, 0]):.4f}{at_zero}", "fill-dim")
        canvas.text(left, 408, f"rms error {spread:.4f}", "fill-dim")
    return canvas


def granularity() -> Canvas:
    """Return small arrays in which equal colours share a scale."""
    canvas = Canvas(
        860, 318, "Which numbers share a scale",
        "Eight arrays of 8 x 16 numbers, cut by tensor, channel, channel of axis 1, four channels, groups of 4, groups "
        "of 6 with an uneven last one, tiles of 4 x 8, and tokens.",
    )  # fmt: skip
    for place, (cut, shape) in enumerate(GRANULARITIES):
        left, top = 32 + 207 * (place % 4), 58 + 146 * (place // 4)
        box = cut.box(shape)
        number = counts(shape, box)
        # Each number's place among the scales; neighbours differ in colour.
        place_of = np.indices(shape) // np.reshape(box, (-1, *(1 for _ in shape)))
        rows = np.ravel_multi_index(tuple(place_of[:-1]), number[:-1])
        colours = ((3 * rows + place_of[-1]) % 5).reshape(-1, shape[-1])
        for colour in range(5):
            corners = [(left + 11 * column, top + 11 * row) for row, column in np.argwhere(colours == colour).tolist()]
            if corners:
                canvas.rectangles(corners, (10, 10), f"fill-c{colour} half")
        scales = prod(number)
        canvas.text(left, top - 26, f"{cut.name}", "fill-ink bold")
        said = f" {TIMES} ".join(str(size) for size in shape)
        canvas.text(left, top - 9, f"{said}, {scales} {'scale' if scales == 1 else 'scales'}", "fill-dim")
    return canvas


def rounding() -> Canvas:
    """Return nearest and stochastic rounding, and the gradient that passes straight through."""
    canvas = Canvas(
        860, 344, "Rounding to nearest, by chance, and its gradient",
        "Left: int4 rounds ties to even. Middle: stochastic rounding picks a neighbour, and the mean over 256 seeds "
        "lies on the diagonal. Right: the gradient is 1 between -8.5 and 7.5 and 0 beyond.",
    )  # fmt: skip
    _nearest(Axes(canvas, (42, 70, 222, 214), (-2.9, 2.9), (-3.3, 3.3)))
    _stochastic(Axes(canvas, (324, 70, 222, 214), (-2.9, 2.9), (-3.3, 3.3)))
    line, became, gradient = _straight_through()
    values = Axes(canvas, (606, 70, 230, 132), (-11.0, 11.0), (-9.9, 9.9))
    values.heading("straight-through", "int4: value above, gradient below")
    values.x_ticks([(value, "") for value in (-8, -4, 0, 4, 8)])
    values.y_ticks(_whole(-8, 8, 8))
    values.curve(line, became, "stroke-c0 thick")
    slopes = Axes(canvas, (606, 222, 230, 62), (-11.0, 11.0), (-0.25, 1.4))
    slopes.x_ticks(_whole(-8, 8, 4), "value / scale")
    slopes.y_ticks(_whole(0, 1))
    slopes.curve(line, gradient, "stroke-c1 thick")
    return canvas


def _whole(low: int, high: int, step: int = 1) -> list[tuple[float, str]]:
    return [(value, signed(value)) for value in range(low, high + 1, step)]


def _nearest(axes: Axes) -> None:
    axes.heading("nearest", "discs: ties go to the even neighbour")
    axes.x_ticks(_whole(-2, 2), "value / scale")
    axes.y_ticks(_whole(-3, 3))
    line = np.linspace(-2.9, 2.9, 1161, dtype=np.float32)
    axes.curve([-2.9, 2.9], [-2.9, 2.9], "stroke-dim dashed")
    axes.curve(line, INT4.round(line), "stroke-c0 thick")
    ties = np.arange(-2.5, 3.0, 1.0, dtype=np.float32)
    axes.dots(ties, INT4.round(ties), 4, "fill-c0")


def _stochastic(axes: Axes) -> None:
    axes.heading("stochastic", "discs: one seed; line: mean of 256")
    axes.x_ticks(_whole(-2, 2), "value / scale")
    axes.y_ticks(_whole(-3, 3))
    line = np.linspace(-2.85, 2.85, 77, dtype=np.float32)
    drawn = np.stack([INT4.round(line, uniform(line.shape, seed, line)) for seed in range(256)])
    axes.dots(line, drawn[0], 2.5, "fill-c1")
    axes.curve(line, drawn.mean(axis=0), "stroke-c0 thick")


def _straight_through() -> tuple[list[float], list[float], list[float]]:
    """Return values from -11 to 11, what int4 with scale 1 makes of them, and the gradient."""
    line = torch.linspace(-11.0, 11.0, 881, requires_grad=True)
    became = fake_quantize(line, Scheme(format=INT4, granularity=PerTensor(), range_method=Fixed(INT4.reach)))
    became.sum().backward()
    assert line.grad is not None
    return line.tolist(), became.tolist(), line.grad.tolist()
