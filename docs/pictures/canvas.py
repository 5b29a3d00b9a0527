"""Plain SVG: a card with text and shapes, and axes that turn numbers into places on it.

Every number is written with two decimals at most, so that equal inputs give equal bytes. Colours are classes, which the
style of the card sets for a light and a dark background.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

#: Class, colour on light, colour on dark. `c0` to `c5` are for data.
COLOURS = (
    ("card", "#ffffff", "#0d1117"),
    ("rim", "#d0d7de", "#30363d"),
    ("ink", "#1f2328", "#e6edf3"),
    ("dim", "#59636e", "#9198a1"),
    ("rule", "#e4e8ec", "#262c34"),
    ("c0", "#0969da", "#58a6ff"),
    ("c1", "#bc4c00", "#f0883e"),
    ("c2", "#1a7f37", "#3fb950"),
    ("c3", "#8250df", "#bc8cff"),
    ("c4", "#bf3989", "#f778ba"),
    ("c5", "#6e7781", "#8b949e"),
)
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
FONT = "font:13px -apple-system,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif"


class Canvas:
    """A picture of `width` by `height`; `title` and `description` are for readers who do not see it."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self._size = width, height
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            f' role="img" aria-labelledby="title description">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="description">{escape(description)}</desc>',
            _style(),
            f'<rect class="fill-card stroke-rim" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"/>',
        ]

    def text(self, x: float, y: float, words: str, style: str = "fill-ink") -> None:
        """Write `words` with the baseline at `y`; `style` may add `middle`, `end`, `bold` or `small`."""
        self._parts.append(f'<text class="{style}" x="{short(x)}" y="{short(y)}">{escape(words, quote=False)}</text>')

    def line(self, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
        """Draw a straight line."""
        self.path([start, end], style)

    def path(self, points: Iterable[tuple[float, float]], style: str) -> None:
        """Draw lines from point to point; a place that is not finite lifts the pen."""
        runs: list[list[tuple[str, str]]] = [[]]
        for x, y in points:
            if not (math.isfinite(x) and math.isfinite(y)):
                runs.append([])
                continue
            run, here = runs[-1], (short(x), short(y))
            # The middle one of three points on a horizontal or a vertical line says nothing.
            if len(run) > 1 and any(run[-2][axis] == run[-1][axis] == here[axis] for axis in (0, 1)):
                run.pop()
            run.append(here)
        steps = "".join("M" + "L".join(f"{x} {y}" for x, y in run) for run in runs if run)
        self._parts.append(f'<path class="{style}" d="{steps}"/>')

    def marks(self, places: Iterable[float], top: float, bottom: float, style: str) -> None:
        """Draw a vertical stroke at each of `places`, as one path."""
        strokes = "".join(f"M{short(x)} {short(top)}V{short(bottom)}" for x in places)
        self._parts.append(f'<path class="{style}" d="{strokes}"/>')

    def rectangles(self, corners: Iterable[tuple[float, float]], size: tuple[float, float], style: str) -> None:
        """Draw equal rectangles from their upper left corners, as one path."""
        across, down = (short(part) for part in size)
        boxes = "".join(f"M{short(x)} {short(y)}h{across}v{down}h-{across}z" for x, y in corners)
        self._parts.append(f'<path class="{style}" d="{boxes}"/>')

    def dots(self, places: Iterable[tuple[float, float]], radius: float, style: str) -> None:
        """Draw discs."""
        for x, y in places:
            self._parts.append(f'<circle class="{style}" cx="{short(x)}" cy="{short(y)}" r="{short(radius)}"/>')

    def legend(self, x: float, y: float, entries: Iterable[tuple[str, str]], step: float = 18) -> None:
        """Write `(style of the line, words)` below one another."""
        for row, (style, words) in enumerate(entries):
            self.line((x, y + row * step - 4), (x + 22, y + row * step - 4), style)
            self.text(x + 28, y + row * step, words)

    def __str__(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])


@dataclass(frozen=True)
class Axes:
    """A rectangle of a canvas on which x runs over `x` and y over `y`."""

    canvas: Canvas
    #: Left, top, width, height.
    place: tuple[float, float, float, float]
    x: tuple[float, float]
    y: tuple[float, float]
    log_x: bool = False

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a point on the canvas."""
        left, top, width, height = self.place
        low, high, value = (math.log(part) for part in (*self.x, x)) if self.log_x else (*self.x, x)
        across = (value - low) / (high - low)
        return left + width * across, top + height * (1.0 - (y - self.y[0]) / (self.y[1] - self.y[0]))

    def heading(self, words: str, below: str = "") -> None:
        """Write a heading above, and a second line under it."""
        left, top, *_ = self.place
        self.canvas.text(left, top - (26 if below else 10), words, "fill-ink bold")
        if below:
            self.canvas.text(left, top - 9, below, "fill-dim")

    def x_ticks(self, ticks: Iterable[tuple[float, str]], label: str = "") -> None:
        """Draw rules and their labels below; `label` names the axis."""
        _, top, width, height = self.place
        for value, words in ticks:
            x, _ = self.at(value, 0.0)
            self.canvas.line((x, top), (x, top + height), "stroke-rule")
            self.canvas.text(x, top + height + 16, words, "fill-dim middle")
        if label:
            self.canvas.text(self.place[0] + width / 2, top + height + 36, label, "fill-dim middle")

    def y_ticks(self, ticks: Iterable[tuple[float, str]]) -> None:
        """Draw rules and their labels at the left."""
        left, _, width, _ = self.place
        for value, words in ticks:
            _, y = self.at(self.x[0], value)
            self.canvas.line((left, y), (left + width, y), "stroke-rule")
            self.canvas.text(left - 6, y + 4, words, "fill-dim end")

    def curve(self, xs: Sequence[float], ys: Sequence[float], style: str) -> None:
        """Draw a line through points; what lies above or below the axes is left out."""
        inside = ((x, y if self.y[0] <= y <= self.y[1] else math.nan) for x, y in zip(xs, ys, strict=True))
        self.canvas.path((self.at(x, y) for x, y in inside), style)

    def dots(self, xs: Sequence[float], ys: Sequence[float], radius: float, style: str) -> None:
        """Draw discs at points."""
        self.canvas.dots((self.at(x, y) for x, y in zip(xs, ys, strict=True)), radius, style)

    def band(self, low: float, high: float, style: str) -> None:
        """Fill between two values of x."""
        (left, _), (right, _) = self.at(low, 0.0), self.at(high, 0.0)
        self.canvas.rectangles([(left, self.place[1])], (right - left, self.place[3]), style)

    def note(self, x: float, y: float, words: str, style: str = "fill-ink") -> None:
        """Write `words` at a point."""
        self.canvas.text(*self.at(x, y), words, style)


def short(value: float) -> str:
    """Return a number with at most two decimals, and no minus before 0."""
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")


def signed(value: float) -> str:
    """Return a number for a label, with a real minus.

    >>> signed(-2.375) == MINUS + "2.375"
    True
    """
    return f"{value:.4g}".replace("-", MINUS)


def _style() -> str:
    """Return the style of the card: colours as classes, once for light and once for dark."""
    light, dark = (
        "".join(f".fill-{row[0]}{{fill:{row[side]}}}.stroke-{row[0]}{{stroke:{row[side]}}}" for row in COLOURS)
        for side in (1, 2)
    )
    shapes = (
        f"text{{{FONT}}}.bold{{font-weight:600}}.small{{font-size:11px}}.middle{{text-anchor:middle}}"
        ".end{text-anchor:end}path{fill:none;stroke-width:1}.thick{stroke-width:2}.dashed{stroke-dasharray:4 3}"
        ".faint{fill-opacity:.14}.pale{fill-opacity:.35}.half{fill-opacity:.7}.area{stroke:none}"
    )
    return f"<style>{shapes}{light}@media (prefers-color-scheme:dark){{{dark}}}</style>"
