"""What the options of the command line say of samples in files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fewbit.calibration import FILE_SAMPLES, Calibration
from fewbit.errors import RecipeError
from fewbit.measurement import Evaluation
from fewbit.samples.files import Samples, are_samples


def calibrating(given: Calibration, batch_size: int | None, preprocessing: Path | None) -> Calibration:
    """Return a calibration that reads files as --batch-size and --preprocess say; a text has none of these."""
    if isinstance(given.data, str) and given.data != "self" and are_samples(given.data):
        return replace(given, data=Samples(given.data, batch_size=batch_size, preprocessing=preprocessing))
    return given


def measuring(data: str | None, text: str | None, batch_size: int | None, preprocessing: Path | None) -> Samples | None:
    """Return what --data says to measure on; `None`: nothing."""
    if data is None:
        return None
    if text is not None:
        raise RecipeError("--data and --text exclude each other: quality is measured on one of them")
    return Samples(data, batch_size=batch_size, preprocessing=preprocessing)


def measuring_on(calibration: Calibration, *, calibrates: bool) -> Evaluation | None:
    """Return the calibration samples as what to measure on, where there is nothing else; `None`: they are no files."""
    samples = calibration.data
    if not isinstance(samples, Samples):
        return None
    said = "that calibrated it too" if calibrates else "given with --calibration"
    chosen = replace(samples, count=calibration.samples or FILE_SAMPLES)
    return Evaluation(batches=chosen, name=f"the samples of {Path(samples.path).name} {said}")


def require_used(calibration: Calibration, evaluation: Samples | None, options: dict[str, object]) -> None:
    """Raise `RecipeError` for `options` about samples where there are none."""
    if evaluation is None and not isinstance(calibration.data, Samples):
        for name, value in options.items():
            if value is not None:
                raise RecipeError(f"{name} is about samples in files, and there are none; give --calibration or --data")
