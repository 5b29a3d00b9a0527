"""What a model declares of an input, and whether an array fits it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.errors import CalibrationError


@dataclass(frozen=True, slots=True)
class ModelInput:
    """An input by its name, with as much of type and shape as the model says."""

    name: str
    dtype: np.dtype[Any] | None = None
    #: Sizes of the axes, the first one that of samples; a name or `None` stands for any. `None`: any shape.
    shape: tuple[int | str | None, ...] | None = None

    @property
    def at_once(self) -> int | None:
        """How many samples every batch must hold; `None`: any number."""
        first = self.shape[0] if self.shape else None
        return first if isinstance(first, int) else None

    def misfit(self, dtype: np.dtype[Any], shape: Sequence[int]) -> tuple[str, str] | None:
        """Return what does not fit about an array, and the remedy; `None` where it fits."""
        if self.dtype is not None and dtype != self.dtype:
            return (
                f"input {self.name!r} takes {self.dtype} and is given {dtype}",
                f"convert it with .astype({str(self.dtype)!r})",
            )
        if self.shape is None or (len(shape) == len(self.shape) and all(map(_fits, self.shape, shape))):
            return None
        return f"input {self.name!r} takes shape {self.declared()} and is given {tuple(shape)}", "reshape it"

    def declared(self, *, sample: bool = False) -> str:
        """Return the shape for people, that of a batch or of one `sample`."""
        sizes = [str(size or "?") for size in self.shape or ()][sample:]
        return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def require_names(given: Collection[str], inputs: Iterable[ModelInput], holder: str) -> None:
    """Raise `CalibrationError` where `holder` holds arrays by other names than those of the inputs."""
    known = [own.name for own in inputs]
    unknown = [name for name in given if name not in known]
    missing = [name for name in known if name not in given]
    if unknown or missing:
        parts = [f"has no {listed(missing)}"] if missing else []
        parts += [f"holds {listed(unknown)}, which the model does not know"] if unknown else []
        raise CalibrationError(f"{holder} {' and '.join(parts)}; the inputs of the model are {listed(known)}")


def require_fit(own: ModelInput, dtype: np.dtype[Any], shape: Sequence[int], where: object) -> None:
    """Raise `CalibrationError` where an array of the file `where` does not fit its input."""
    wrong = own.misfit(dtype, shape)
    if wrong:
        raise CalibrationError(f"{where}: {'; '.join(wrong)}")


def only(inputs: Sequence[ModelInput], where: object) -> ModelInput:
    """Return the input of a model with one, for a file that holds one array without a name."""
    if len(inputs) != 1:
        raise CalibrationError(
            f"{where} holds one array without a name, and the inputs of the model are "
            f"{listed(own.name for own in inputs)}; give an array by the name of each"
        )
    return inputs[0]


def at_once(inputs: Iterable[ModelInput]) -> int | None:
    """Return how many samples every batch must hold; `None`: any number.

    Raises:
        CalibrationError: inputs that want different numbers.

    """
    sizes = {own.name: own.at_once for own in inputs if own.at_once is not None}
    if len(set(sizes.values())) > 1:
        wanted = ", ".join(f"{name!r} {size}" for name, size in sizes.items())
        raise CalibrationError(
            f"the inputs take different numbers of samples at once ({wanted}), so that nothing cut into batches fits; "
            "give batches, or a reader"
        )
    return next(iter(sizes.values()), None)


def listed(names: Iterable[str]) -> str:
    """Return names for people."""
    return ", ".join(repr(name) for name in names) or "none"


def _fits(declared: int | str | None, size: int) -> bool:
    return not isinstance(declared, int) or declared == size
