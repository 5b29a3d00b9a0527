"""Pictures of what one number can be: levels on a line, and the entries of NF4 under a normal density."""

from __future__ import annotations

from itertools import pairwise
from math import log2
from statistics import NormalDist

import numpy as np
from canvas import Axes, Canvas, signed

from fewbit.catalogue import lookup
from fewbit.formats import FORMATS
from fewbit.formats.codebook import NF4
from fewbit.formats.integer import INT4
from fewbit.formats.number_format import NumberFormat

NAMES = ("int8", "int4", "nf4", "e5m2", "e4m3", "e3m2", "e2m3", "e2m1")


def levels() -> Canvas:
    """Return the levels of eight formats, on a linear and on a logarithmic line."""
    canvas = Canvas(
        860, 336, "The levels of number formats",
        "Every level of int8, int4, nf4, e5m2, e4m3, e3m2, e2m3 and e2m1 under a scale that maps the largest magnitude "
        "to 1; on a line from -1 to 1, and their magnitudes on a logarithmic line from 2^-32 to 1.",
    )  # fmt: skip
    linear = Axes(canvas, (130, 50, 390, 246), (-1.07, 1.07), (0.0, 1.0))
    octaves = Axes(canvas, (560, 50, 276, 246), (-33.0, 1.0), (0.0, 1.0))
    linear.heading("levels, the largest magnitude at 1")
    octaves.heading("positive levels by octave")
    linear.x_ticks([(value, signed(value)) for value in (-1, -0.5, 0, 0.5, 1)])
    octaves.x_ticks([(-32, "2⁻³²"), (-24, "2⁻²⁴"), (-16, "2⁻¹⁶"), (-8, "2⁻⁸"), (0, "1")])
    for row, name in enumerate(NAMES):
        form: NumberFormat = lookup(FORMATS, name, what="number format")
        y = 66 + 31 * row
        colour = f"stroke-c{ {'i': 0, 'n': 2, 'e': 1}[name[0]] }"
        canvas.text(16, y + 4, name, "fill-ink bold")
        canvas.text(118, y + 4, f"{len(form.levels)} levels", "fill-dim end")
        scaled = [level / form.reach for level in form.levels]
        canvas.marks([linear.at(level, 0)[0] for level in scaled], y - 9, y + 9, colour)
        positive = [octaves.at(log2(level), 0)[0] for level in scaled if level > 0]
        canvas.marks(positive, y - 9, y + 9, colour)
    return canvas


def nf4() -> Canvas:
    """Return the entries of NF4 and int4 with the share of a normal distribution that goes to each."""
    canvas = Canvas(
        860, 468, "NF4 and int4 under a normal density",
        "Each level takes the values nearest to it. Under a normal distribution the 16 cells of NF4 hold shares of the "
        "same order, the cells of int4 do not.",
    )  # fmt: skip
    # QLoRA puts the outermost entries at the quantiles that leave 0.0323 of the distribution outside.
    normal = NormalDist(0.0, 1.0 / NormalDist().inv_cdf(1.0 - 0.5 * (1.0 / 32 + 1.0 / 30)))
    for row, form in enumerate((NF4, INT4)):
        axes = Axes(canvas, (34, 44 + 228 * row, 792, 146), (-1.2, 1.2), (0.0, 0.76))
        axes.heading(f"{form.name}: levels, and the percentage of a normal distribution that goes to each")
        _cells(axes, form, normal)
        canvas.line(axes.at(-1.2, 0.0), axes.at(1.2, 0.0), "stroke-dim")
        for value in (-1, -0.5, 0, 0.5, 1):
            x, y = axes.at(value, 0.0)
            canvas.text(x, y + 36, signed(value), "fill-dim middle")
    return canvas


def _cells(axes: Axes, form: NumberFormat, normal: NormalDist) -> None:
    """Draw the density over the cells of the levels, with each cell's share in percent below it."""
    entries = [level / form.reach for level in form.levels]
    borders = [-1.2, *((a + b) / 2 for a, b in pairwise(entries)), 1.2]
    for number, (low, high) in enumerate(pairwise(borders)):
        curve = [(float(x), normal.pdf(float(x))) for x in np.linspace(low, high, 40)]
        outline = [(low, 0.0), *curve, (high, 0.0), (low, 0.0)]
        axes.canvas.path((axes.at(x, y) for x, y in outline), f"area fill-c{(2, 5)[number % 2]} pale")
        share = (normal.cdf(high) if high < 1.2 else 1.0) - (normal.cdf(low) if low > -1.2 else 0.0)
        x, y = axes.at(entries[number], 0.0)
        axes.canvas.line((x, y), axes.at(entries[number], normal.pdf(entries[number])), "stroke-c2 thick")
        axes.canvas.text(x, y + 16, f"{100 * share:.1f}", "fill-ink small middle")
