"""What the options of the command line say of samples in files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fewbit.calibration import FILE_SAMPLES, Calibration
from fewbit.errors import RecipeError
from fewbit.measurement import Evaluation
from fewbit.samples.files import Samples, are_samples
from fewbit.synthetic.options import Synthetic

#: What `--calibration` calls data that there is none of, by what makes something in its place.
_MADE = {"synthetic": "auto", "none": "batchnorm"}


def calibrating(given: Calibration, batch_size: int | None, preprocessing: Path | None) -> Calibration:
    """Return a calibration that reads files as --batch-size and --preprocess say; a text has none of these."""
    if isinstance(given.data, str) and given.data != "self" and are_samples(given.data):
        return replace(given, data=Samples(given.data, batch_size=batch_size, preprocessing=preprocessing))
    return given


def made_of(
    calibration: str, shape: str | None, preprocessing: Path | None, iterations: int | None = None
) -> str | Synthetic:
    """Return what the options say of data that a model makes for itself, or the path of other data.

    Raises:
        RecipeError: a shape that is no list of numbers; shape or iterations of other data.

    """
    if iterations is not None and calibration != "synthetic":
        raise RecipeError("--iterations is about images that a model makes; give --calibration synthetic")
    if calibration not in _MADE:
        if shape is not None:
            raise RecipeError("--shape is about images that a model makes; give --calibration synthetic or none")
        return calibration
    sizes = None if shape is None else tuple(shape.split(","))
    if sizes is not None and not all(size.strip().isdecimal() for size in sizes):
        raise RecipeError(f"--shape {shape!r:.80} is not channels, height and width; give 3,224,224, say")
    return Synthetic(
        method=_MADE[calibration],
        shape=None if sizes is None else tuple(int(size) for size in sizes),
        preprocessing=preprocessing,
        iterations=iterations,
    )


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
    synthetic = isinstance(calibration.data, Synthetic)
    if evaluation is None and not isinstance(calibration.data, Samples):
        options = {name: value for name, value in options.items() if not (synthetic and name == "--preprocess")}
        for name, value in options.items():
            if value is not None:
                raise RecipeError(f"{name} is about samples in files, and there are none; give --calibration or --data")
