"""The plan in a few lines, for the terminal: layers that become the same thing are one line, with their bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fewbit.evaluation.size import megabytes
from fewbit.planning import Plan

_HEAD = ("layers", "become", "by", "count", "before", "after")


@dataclass(slots=True)
class _Line:
    count: int = 0
    size: Counter[str] = field(default_factory=Counter)


def plan_table(plan: Plan) -> str:
    """Return the table; sizes are those of stored tensors."""
    lines: dict[tuple[str, str, str], _Line] = {}
    for row in plan.rows:
        by = row.algorithm.name if row.algorithm else ""
        line = lines.setdefault((row.layer.kind, row.becomes, by), _Line())
        line.count += 1
        line.size.update(before=row.bytes_before, after=row.bytes_after)
    cells = [
        (*what, f"{line.count}", megabytes(line.size["before"]), megabytes(line.size["after"]))
        for what, line in lines.items()
    ]
    rest = megabytes(plan.rest_bytes)
    cells.append(("the rest", "float", "", "", rest, rest))
    cells.append(("in all", "", "", f"{len(plan.rows)}", megabytes(plan.bytes_before), megabytes(plan.bytes_after)))
    return _aligned([_HEAD, *cells])


def _aligned(cells: list[tuple[str, ...]]) -> str:
    """Return columns side by side, words to the left and figures to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
    sides = ["<"] * 3 + [">"] * 3
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
        for row in cells
    )
