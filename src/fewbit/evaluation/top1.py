"""Top-1: how often the highest score is that of the label (accuracy), or the one of another model (agreement)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.errors import CalibrationError

Numbers = np.ndarray[Any, Any]
#: Axes of scores: (samples, classes), or (samples, places, classes).
_AXES = (2, 3)


def scores_among(outputs: Mapping[str, Any], labels: Numbers | None) -> str | None:
    """Return the name of the output that holds scores, classes last: the first of its shape, with labels that fit.

    Raises:
        CalibrationError: labels that fit no output.

    """
    arrays = {name: values for name, values in outputs.items() if isinstance(values, np.ndarray)}
    scores = [name for name, values in arrays.items() if values.dtype.kind == "f" and values.ndim in _AXES]
    scores = [name for name in scores if arrays[name].shape[-1] > 1]
    if labels is None:
        return scores[0] if scores else None
    for name in scores:
        if outputs[name].shape[:-1] == labels.shape:
            return name
    shapes = ", ".join(f"{name!r} {values.shape}" for name, values in arrays.items())
    raise CalibrationError(
        f"labels of shape {labels.shape} a batch fit no output ({shapes}); scores are labels x classes"
    )


@dataclass(slots=True)
class Top1:
    """Counts over the batches that were seen."""

    predictions: int = 0
    agreeing: int = 0
    #: Right ones, of the model and of the other.
    right: int = 0
    reference_right: int = 0

    def add(self, scores: Numbers, reference: Numbers | None, labels: Numbers | None) -> None:
        """Take in the scores (..., classes) of a batch, those of another model, and the labels (...).

        Raises:
            CalibrationError: a label that is none of the classes.

        """
        chosen = scores.argmax(-1)
        self.predictions += chosen.size
        other = None if reference is None else reference.argmax(-1)
        if other is not None:
            self.agreeing += int(np.count_nonzero(chosen == other))
        if labels is None:
            return
        if labels.size and int(labels.max()) >= scores.shape[-1]:
            raise CalibrationError(
                f"label {int(labels.max())} is none of {scores.shape[-1]} classes, which count from 0; "
                "are they the labels of this model?"
            )
        self.right += int(np.count_nonzero(chosen == labels))
        if other is not None:
            self.reference_right += int(np.count_nonzero(other == labels))
