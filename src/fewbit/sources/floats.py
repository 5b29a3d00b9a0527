"""A float model as a source; one that is quantized already is none."""

from __future__ import annotations

from typing import Any

from fewbit.errors import PlanError
from fewbit.interfaces import Source
from fewbit.sources import open_source


def float_source(model: Any) -> Source:
    """Return the source of a float model; raises `PlanError` for one that is quantized already."""
    from fewbit.sources.checkpoint import CheckpointFolder

    source = open_source(model)
    if isinstance(source, CheckpointFolder):
        raise PlanError(f"{source.name} is quantized already; start from the float model")
    return source
