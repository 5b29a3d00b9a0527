"""What a model is calibrated with: batches, samples in files, a text file, or what the model makes for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewbit.adoption import adopted, batches_given, opened
from fewbit.errors import CalibrationError, PlanError
from fewbit.evaluation.token_ids import context_of, require_known, writes_text
from fewbit.interfaces import Frontend, Progress, Silent, Source
from fewbit.samples.batches import arrays_in
from fewbit.samples.files import Samples, are_samples
from fewbit.statistics.partials import PART
from fewbit.synthetic.images import SyntheticImages
from fewbit.synthetic.options import Synthetic

#: Without other wishes a model writes this much: two cores manage a few hundred tokens a second.
SELF_SAMPLES, SELF_LENGTH = 32, 256
#: Tokens of a sequence that is cut from a text.
TEXT_LENGTH = 512
#: Samples of files: ranges hardly move with more.
FILE_SAMPLES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Data that statistics are gathered on.

    >>> Calibration(data="self", samples=64).holds_batches
    False
    """

    #: Batches as for `Evaluation`, or what gives them: an iterable, or a reader with `get_next()`; samples in files, as
    #: `Samples` or by their path; the path of a UTF-8 text file; `self`: text that the model writes; or what it makes
    #: of itself, as `Synthetic` or `synthetic`.
    data: Sequence[Any] | Samples | Synthetic | str | Path
    #: Sequences to write, or to cut from a text, 32 if left out; samples to take of files, 512 if left out; images to
    #: make, 64 if left out.
    samples: int | None = None
    #: Tokens of each; left out: 256 when the model writes, 512 of a text, or the context where it is shorter.
    length: int | None = None
    #: Sequences that a language model writes besides, as long as those of the data: what is known of its layers' inputs
    #: then holds better on text unlike the data.
    written: int = 0
    #: Measure the layers of a block one after the other, each behind the quantized ones before it. It is also faster:
    #: the runs of a block wait at each layer instead of running twice, for which they hold what is between.
    sequential: bool = True
    #: Batches whose statistics are summed apart; the sums are merged in order. Fewer let more workers share them.
    part: int = PART
    #: What to call batches in the report.
    name: str = "the given batches"

    def __post_init__(self) -> None:
        if (self.samples is not None and self.samples < 1) or (self.length is not None and self.length < 2):
            raise CalibrationError(
                f"calibration with {self.samples} samples of {self.length} tokens; "
                "give at least one sample of two tokens"
            )
        if self.written < 0:
            raise CalibrationError(f"{self.written} sequences that the model writes besides; give 0 or more")
        if self.written and isinstance(self.data, str) and self.data == "self":
            raise CalibrationError(f"the model writes all sequences, not {self.written} besides; give samples instead")
        if self.part < 1:
            raise CalibrationError(f"parts of {self.part} batches hold nothing; give 1 at least")
        if isinstance(self.data, str) and self.data == "synthetic":
            object.__setattr__(self, "data", Synthetic())

    @property
    def holds_batches(self) -> bool:
        """Whether the data are batches, not files and not text."""
        return not isinstance(self.data, str | Path | Samples | Synthetic)

    def opened(self, model: Any, frontend: Frontend) -> Calibration:
        """Return the calibration with batches for `model`, in arrays of its framework, where it has any.

        Raises:
            CalibrationError: files that cannot be read or do not fit the model.

        """
        given: Any = self.data
        if given != "self" and are_samples(given):
            batches, name = opened(given, model, frontend, self.samples or FILE_SAMPLES)
            return replace(self, data=batches, name=name)
        return replace(self, data=adopted(given, model, frontend)) if self.holds_batches else self

    def described(self, batches: Sequence[Any]) -> str:
        """What the report says that it was calibrated with."""
        if isinstance(batches, SyntheticImages):
            return str(batches)
        own = f", and {self.written} x {batches[-1].shape[-1]} that the model wrote" if self.written else ""
        if isinstance(self.data, str | Path) and self.data != "self":
            what = Path(self.data).name
        elif isinstance(self.data, str | Path | Synthetic):
            what = "text that the model wrote"
        else:
            return f"{self.name}: {len(batches) - self.written} batches{own}"
        return f"{what}: {len(batches) - self.written} x {batches[0].shape[-1]} tokens{own}"

    def batches(self, model: Any, source: Source, *, seed: int = 0, progress: Progress | None = None) -> Sequence[Any]:
        """Return the batches, one at least; `model` is the live one, for which files must be opened.

        Raises:
            CalibrationError: nothing to calibrate with, or tokens that the model does not know or take.
            SourceError: a text that cannot be read or is too short.

        """
        found = self._gathered(model, source, seed, progress or Silent())
        if not found:
            raise CalibrationError("calibration holds no batch; give some, or leave it out")
        require_known(found, model, what="calibration")
        return [*found, *self._besides(found, model, seed, progress or Silent())] if self.written else found

    def _besides(self, found: Sequence[Any], model: Any, seed: int, progress: Progress) -> Sequence[Any]:
        """Return what the model writes besides, as long as the first of the batches that were `found`."""
        if not writes_text(model):
            raise CalibrationError(
                f"{type(model).__name__} writes no text of its own besides the calibration data; leave out written"
            )
        from fewbit.synthetic.self_text import written_by

        (_, tokens), *_ = arrays_in(found[0])
        length = self._length(tokens.shape[-1], model)
        return written_by(model, sequences=self.written, length=length, seed=seed, progress=progress)

    def _gathered(self, model: Any, source: Source, seed: int, progress: Progress) -> Sequence[Any]:
        writes = self.data == "self"
        if isinstance(self.data, Synthetic):
            from fewbit.synthetic.choice import chosen

            asked = replace(self.data, samples=self.data.samples or self.samples)
            if chosen(model, asked) != "self":
                return asked.images(model, seed=seed, progress=progress)
            writes = True
        if writes:
            from fewbit.synthetic.self_text import written_by

            return written_by(
                model, sequences=self.samples or SELF_SAMPLES, length=self._length(SELF_LENGTH, model), seed=seed,
                progress=progress,
            )  # fmt: skip
        if isinstance(self.data, str | Path):
            from fewbit.evaluation.text import read_text, token_sequences

            tokenizer = source.tokenizer()
            if tokenizer is None:
                raise CalibrationError(
                    f"{source.name} has no tokenizer for {self.data}; give batches of token ids, or samples: an .npz "
                    "or .npy file, a folder of .npy files or images"
                )
            text, _ = read_text(self.data)
            length = self._length(TEXT_LENGTH, model)
            return token_sequences(tokenizer, text, sequences=self.samples or SELF_SAMPLES, length=length)
        assert not isinstance(self.data, Samples | Synthetic)  # they are opened, or made
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
    """Return the calibration for `None` or `none`, `self`, `synthetic`, a path, or anything that a `Calibration` takes.

    Raises:
        CalibrationError: one batch instead of several, or a reader that gives no dicts.

    """
    if value is None or (isinstance(value, str) and value == "none"):
        return None
    found = value if isinstance(value, Calibration) else Calibration(data=value)
    if not found.holds_batches:
        return found
    return replace(found, data=batches_given(found.data, "calibration"))


def default_calibration(model: Any) -> Calibration:
    """Return what a model is calibrated with where nothing is given: text that it writes, or a `PlanError`."""
    if not writes_text(model):
        raise PlanError(
            "this recipe needs calibration data (for gptq, static ranges, transforms) and the model writes no text; "
            "give calibration=[batch, ...], the path of samples, or of a torch module calibration='synthetic'"
        )
    return Calibration(data="self")
