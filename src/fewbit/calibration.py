"""What a model is calibrated with: batches that are given, a text file, or text that the model writes itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.errors import CalibrationError
from fewbit.evaluation.token_ids import context_of, require_known
from fewbit.interfaces import Progress, Silent, Source

#: Without other wishes a model writes this much: two cores manage a few hundred tokens a second.
SELF_SAMPLES, SELF_LENGTH = 32, 256
#: Tokens of a sequence that is cut from a text.
TEXT_LENGTH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Data that statistics are gathered on.

    >>> Calibration(data="self").samples
    32
    """

    #: Batches as for `Evaluation`; the path of a UTF-8 text file; or `self`.
    data: Sequence[Any] | str | Path
    #: Sequences to write, or to cut from a text.
    samples: int = SELF_SAMPLES
    #: Tokens of each; left out: 256 when the model writes, 512 of a text, or the context where it is shorter.
    length: int | None = None
    #: Measure the layers of a block one after the other, each behind the quantized ones before it. It is also faster:
    #: the runs of a block wait at each layer instead of running twice, for which they hold what is between.
    sequential: bool = True
    #: What to call batches in the report.
    name: str = "the given batches"

    def __post_init__(self) -> None:
        if self.samples < 1 or (self.length is not None and self.length < 2):
            raise CalibrationError(
                f"calibration with {self.samples} samples of {self.length} tokens; "
                "give at least one sample of two tokens"
            )

    @property
    def holds_batches(self) -> bool:
        """Whether the data are batches, not text."""
        return not isinstance(self.data, str | Path)

    def described(self, batches: Sequence[Any]) -> str:
        """What the report says that it was calibrated with."""
        if not isinstance(self.data, str | Path):
            return f"{self.name}: {len(batches)} batches"
        what = "text that the model wrote" if self.data == "self" else Path(self.data).name
        return f"{what}: {len(batches)} x {batches[0].shape[-1]} tokens"

    def batches(self, model: Any, source: Source, *, seed: int = 0, progress: Progress | None = None) -> list[Any]:
        """Return the batches, one at least; `model` is the live one.

        Raises:
            CalibrationError: nothing to calibrate with, or tokens that the model does not know or take.
            SourceError: a text that cannot be read or is too short.

        """
        found = list(self._gathered(model, source, seed, progress or Silent()))
        if not found:
            raise CalibrationError("calibration holds no batch; give some, or leave it out")
        require_known(found, model, what="calibration")
        return found

    def _gathered(self, model: Any, source: Source, seed: int, progress: Progress) -> Iterable[Any]:
        if self.data == "self":
            from fewbit.synthetic.self_text import written_by

            return written_by(
                model, sequences=self.samples, length=self._length(SELF_LENGTH, model), seed=seed, progress=progress
            )
        if isinstance(self.data, str | Path):
            from fewbit.evaluation.text import read_text, token_sequences

            tokenizer = source.tokenizer()
            if tokenizer is None:
                raise CalibrationError(f"{source.name} has no tokenizer for {self.data}; give batches of token ids")
            text, _ = read_text(self.data)
            return token_sequences(tokenizer, text, sequences=self.samples, length=self._length(TEXT_LENGTH, model))
        return self.data

    def _length(self, usual: int, model: Any) -> int:
        return self.length or min(usual, context_of(model) or usual)


def first_batch(model: Any, given: Calibration | None, evaluated: Sequence[Any]) -> Any | None:
    """Return a batch to see on what `model` does, of calibration or else of evaluation; `None` where there is none.

    Raises:
        CalibrationError: tokens that the model does not know or take.

    """
    calibrated: Any = given.data if given and given.holds_batches else ()
    for what, batches in {"calibration": calibrated, "evaluation": evaluated}.items():
        if batches:
            require_known(batches[:1], model, what=what)
            return batches[0]
    return None


def parse_calibration(value: Any) -> Calibration | None:
    """Return the calibration for `None` or `none`, `self`, the path of a text, batches, or a `Calibration`."""
    if value is None or (isinstance(value, str) and value == "none"):
        return None
    if isinstance(value, Calibration):
        return value
    if isinstance(value, str | Path):
        return Calibration(data=value)
    if isinstance(value, Mapping) or hasattr(value, "shape") or not hasattr(value, "__iter__"):
        raise CalibrationError(
            f"calibration is a list of batches, a text file or 'self', not one {type(value).__name__}; "
            "wrap it in a list"
        )
    return Calibration(data=list(value))
