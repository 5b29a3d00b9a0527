"""Batches as a model takes them: files are opened for its inputs, NumPy arrays become arrays of its framework."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fewbit.errors import CalibrationError
from fewbit.interfaces import Frontend
from fewbit.samples.batches import Mapped
from fewbit.samples.files import Samples
from fewbit.samples.reader import batches_of_reader
from fewbit.samples.recorded import Recorded


def batches_given(value: Any, what: str) -> Sequence[Any]:
    """Return what can be gone through again and again of a sequence, an iterable or a reader of batches.

    Raises:
        CalibrationError: one batch instead of several; `what` is the use of it.

    """
    if hasattr(value, "get_next"):
        return batches_of_reader(value)
    if isinstance(value, (str, bytes, Mapping)) or hasattr(value, "shape") or not isinstance(value, Iterable):
        raise CalibrationError(
            f"{what} takes several batches, a reader or the path of files, not one {type(value).__name__}; "
            "wrap it in a list"
        )
    return value if isinstance(value, Sequence) else Recorded(value)


def adopted(batches: Sequence[Any], model: Any, frontend: Frontend) -> Sequence[Any]:
    """Return `batches` with NumPy arrays as what `model` runs on."""
    return Mapped(partial(frontend.adopted, model), batches)


def opened(samples: Samples | str | Path, model: Any, frontend: Frontend, at_most: int | None) -> tuple[Any, str]:
    """Return the batches of samples in files, and what to call them; raises as `Samples.open` does."""
    given = samples if isinstance(samples, Samples) else Samples(samples)
    found = given.open(frontend.inputs(model), at_most)
    return adopted(found.batches, model, frontend), found.name
