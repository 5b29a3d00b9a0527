"""A histogram as lines of block characters, an eighth of a line fine; what is there at all is seen."""

from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = " \N{LOWER ONE EIGHTH BLOCK}\N{LOWER ONE QUARTER BLOCK}\N{LOWER THREE EIGHTHS BLOCK}\N{LOWER HALF BLOCK}" + (
    "\N{LOWER FIVE EIGHTHS BLOCK}\N{LOWER THREE QUARTERS BLOCK}\N{LOWER SEVEN EIGHTHS BLOCK}\N{FULL BLOCK}"
)


def histogram_lines(counts: Sequence[int], low: float, high: float, *, height: int = 4) -> list[str]:
    """Return the drawing, a character for each count, and below it an axis from `low` to `high`, with 0 where it is.

    >>> print("|".join(line.strip() for line in histogram_lines((0, 1, 8, 1, 1, 0, 4, 1), -1.0, 1.0, height=1)))
    ▁█▁▁ ▄▁|-1  0  1
    """
    top = max(*counts, 1)
    heights = [max(round(8 * height * count / top), 1 if count else 0) for count in counts]
    drawn = [[_EIGHTHS[min(max(own - 8 * line, 0), 8)] for own in heights] for line in reversed(range(height))]
    return [*("".join(line).rstrip() for line in drawn), _axis(len(counts), low, high)]


def _axis(width: int, low: float, high: float) -> str:
    """Return both ends, and 0 where there is room for it."""
    left, right = f"{low:.4g}", f"{high:.4g}"
    cells = list(left.ljust(max(width - len(right), len(left) + 1)) + right)
    place = round((width - 1) * -low / (high - low)) if low < 0 < high else 0
    if len(left) < place < len(cells) - len(right) - 1:
        cells[place] = "0"
    return "".join(cells)
