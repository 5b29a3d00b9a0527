"""The report as one self-contained HTML page, from `page.html`."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

from fewbit.evaluation.size import megabytes

if TYPE_CHECKING:
    from fewbit.report.data import Report


def render(report: Report) -> str:
    """Return the page; every value is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files("fewbit.report").joinpath("page.html").read_text("utf-8"))
    loudest = max(
        [layer.weight_sqnr or 0.0 for layer in report.quantized if layer.weight_sqnr != float("inf")] or [1.0]
    )
    calibrated = any(layer.solved_sqnr is not None for layer in report.layers)
    return template.render(report=report, scale=max(loudest, 1.0), size=megabytes, calibrated=calibrated)
