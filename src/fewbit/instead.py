"""What stands in the place of calibration data: an importance matrix, or that there is to be none at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewbit.errors import CalibrationError
from fewbit.interfaces import Source
from fewbit.no_data import NoData
from fewbit.weighting import Weighting


def in_place_of_data(calibration: Any, importance: str | Path | None, source: Source) -> Weighting | NoData | None:
    """Return what a model is quantized by in the place of data; `None`: by data, or by what needs none.

    Raises:
        CalibrationError: an importance matrix together with data.
        CheckpointError: a damaged importance matrix, or a model that GGUF has no names for.

    """
    if importance is None:
        return NoData.of(calibration)
    if calibration is not None and not (isinstance(calibration, str) and calibration == "none"):
        raise CalibrationError("an importance matrix stands in the place of calibration data; give one of the two")
    return Weighting.read(importance, source)
