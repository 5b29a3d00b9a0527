"""Measure a model that is no language model on samples, alone or beside a reference: outputs, agreement, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.errors import CalibrationError
from fewbit.evaluation.outputs import OutputError, OutputSums, require_finite
from fewbit.evaluation.top1 import Top1, scores_among
from fewbit.samples.batches import samples_in

Numbers = np.ndarray[Any, Any]
#: From a batch to outputs by name, most of them arrays.
Run = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What samples have shown; `None` stands for what there is no reference, or are no labels or scores, for."""

    samples: int
    outputs: tuple[OutputError, ...] = ()
    #: Outputs that were not compared, each with the reason.
    left_out: tuple[str, ...] = ()
    #: The output that agreement and accuracy are taken from, and how many predictions it held.
    scores: str | None = None
    predictions: int = 0
    top1_agreement: float | None = None
    accuracy: float | None = None
    reference_accuracy: float | None = None


def compare(run: Run, reference: Run | None, batches: Iterable[Any], labels: Numbers | None) -> Comparison:
    """Run `batches` through one model or two; `labels` are those of all samples. Memory holds a batch of each.

    Raises:
        CalibrationError: batches that do not fit, labels that fit no output, or no output that both models have.
        NonFiniteError: an output that is NaN or infinite.

    """
    outputs, top1, scores, seen = _Outputs(), Top1(), None, 0
    for batch in batches:
        count = samples_in(batch)
        own = None if labels is None else labels[seen : seen + count]
        actual = run(batch)
        require_finite(actual, "the model")
        expected = None
        if reference is not None:
            expected = reference(batch)
            require_finite(expected, "the reference")
            outputs.add(expected, actual, count)
        if not seen:
            shared = actual if expected is None else {name: actual[name] for name in outputs.sums}
            scores = scores_among(shared, own)
        if scores is not None:
            top1.add(actual[scores], None if expected is None else expected[scores], own)
        seen += count
    shares = {
        "top1_agreement": top1.agreeing if scores and reference else None,
        "accuracy": top1.right if scores and labels is not None else None,
        "reference_accuracy": top1.reference_right if scores and reference and labels is not None else None,
    }
    return Comparison(
        samples=seen,
        outputs=tuple(sums.result() for sums in outputs.sums.values()),
        left_out=tuple(outputs.left_out.values()),
        scores=scores,
        predictions=top1.predictions,
        **{name: None if own is None else own / max(top1.predictions, 1) for name, own in shares.items()},
    )


class _Outputs:
    """The sums of every output that both models have, in the shapes that they gave it so far."""

    def __init__(self) -> None:
        self.sums: dict[str, OutputSums] = {}
        self.left_out: dict[str, str] = {}

    def add(self, expected: Mapping[str, Any], actual: Mapping[str, Any], samples: int) -> None:
        """Take in the outputs of a batch.

        Raises:
            CalibrationError: there is none that can be compared.

        """
        for name in [*actual, *(name for name in expected if name not in actual)]:
            why = _difference(expected.get(name), actual.get(name))
            if why is not None:
                self.left_out.setdefault(name, f"output {name!r} {why}")
                self.sums.pop(name, None)
            elif name not in self.left_out:
                self.sums.setdefault(name, OutputSums(name)).add(expected[name], actual[name], samples)
        if not self.sums:
            raise CalibrationError(f"nothing can be compared: {'; '.join(self.left_out.values())}")


def _difference(expected: Any, actual: Any) -> str | None:
    """Return why two outputs of one name cannot be compared number by number."""
    if expected is None or actual is None:
        return f"is missing in the {'reference' if expected is None else 'model'}"
    if not (isinstance(expected, np.ndarray) and isinstance(actual, np.ndarray)):
        return "is no array"
    if expected.shape != actual.shape:
        return f"has shape {actual.shape}, and {expected.shape} in the reference"
    kinds = ["float" if own.dtype.kind == "f" else "whole" for own in (expected, actual)]
    return None if kinds[0] == kinds[1] else f"is {actual.dtype}, and {expected.dtype} in the reference"
