"""Several runs as one self-contained HTML page, from `comparison.html` and the style of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewbit.report.template import assets, template

if TYPE_CHECKING:
    from fewbit.report.comparison import Comparison

#: Layers before the table is folded.
_SHOWN = 40


def render(comparison: Comparison) -> str:
    """Return the page; every value is escaped."""
    differences = comparison.differences()
    errors = [own for layer in differences for own in layer.errors if own is not None and own < float("inf")]
    return template("comparison.html").render(
        **assets("page.css"),
        comparison=comparison,
        runs=[(own, own.to_dict()) for own in comparison.runs],
        best=comparison.best,
        plot=comparison.plot(),
        differences=differences,
        shown=_SHOWN,
        longest=max(errors, default=0.0) or 1.0,
    )
