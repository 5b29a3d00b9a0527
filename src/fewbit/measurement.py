"""What quality is measured on: batches, or samples in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewbit.adoption import adopted, batches_given, opened
from fewbit.errors import RecipeError
from fewbit.interfaces import Frontend
from fewbit.samples.files import Samples

#: What batches are called that nobody has named.
_NAMELESS = "the given batches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What quality is measured on.

    Batches of token ids (sequences, length) for a language model; for any other model whatever it takes: an array, a
    tuple of arguments or a dict of keyword arguments. NumPy arrays will do for every framework.
    """

    #: A sequence of them, or what gives them: an iterable, or a reader with `get_next()`; or samples in files, as
    #: `Samples` or by their path.
    batches: Sequence[Any] | Samples | str | Path
    #: What to call it in the report; files have names of their own.
    name: str = _NAMELESS

    def opened(self, model: Any, frontend: Frontend) -> tuple[Sequence[Any], str]:
        """Return the batches for `model`, in arrays of its framework, and what to call them.

        Raises:
            CalibrationError: files that cannot be read or do not fit the model.

        """
        if isinstance(self.batches, Samples | str | Path):
            batches, name = opened(self.batches, model, frontend, None)
            return batches, name if self.name == _NAMELESS else self.name
        return adopted(self.batches, model, frontend), self.name


def parse_evaluation(value: Any) -> Evaluation | None:
    """Return the evaluation for `None`, batches, a reader, a path, `Samples`, or an `Evaluation`.

    Raises:
        RecipeError: no batch.

    """
    if value is None:
        return None
    found = value if isinstance(value, Evaluation) else Evaluation(batches=value)
    if isinstance(found.batches, Samples | str | Path):
        return found
    batches = batches_given(found.batches, "evaluation")
    if not batches:
        raise RecipeError("evaluation holds no batch; leave it out, or give some")
    return replace(found, batches=batches)
