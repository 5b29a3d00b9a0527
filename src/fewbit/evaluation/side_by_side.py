"""Measure a model in its float and in its quantized form, batch by batch, while both are in memory.

Language models are scored by `quality.compare`; any other module by the SQNR of its output. Each layer's own output is
watched on the first batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fewbit.activation import Activation
from fewbit.errors import RecipeError
from fewbit.evaluation.fidelity import decibels
from fewbit.evaluation.input_profile import InputProfile, input_profile
from fewbit.evaluation.quality import Quality, compare
from fewbit.interfaces import Forms, Frontend, Progress, Switch
from fewbit.numerics.namespace import array_namespace, is_torch


@dataclass(slots=True)
class Measured:
    """What running both forms of the model showed."""

    before: Quality | None = None
    after: Quality | None = None
    output_sqnr: float | None = None
    layers: dict[str, float] | None = None
    #: What went into layers in the first batch.
    inputs: dict[str, InputProfile] = field(default_factory=dict)
    #: What all forwards took, of the float form and of the quantized one; `None` where that one is only simulated.
    seconds: tuple[float, float] | None = None


def measure(
    model: Any,
    layers: Sequence[Forms],
    batches: Sequence[Any],
    frontend: Frontend,
    progress: Progress,
    *,
    beside: Sequence[Switch] = (),
) -> Measured:
    """Run every batch, one at least, through both forms of `model`; the float form is installed before and after.

    `beside` is what has two forms beside the layers, each of which is measured on its own too.

    Raises:
        RecipeError: a model whose output holds no array.
        NonFiniteError: activations that are NaN or infinite; the layer is named.

    """
    both = _BothForms(model, (*layers, *beside), frontend)
    measured = Measured()

    def watch(name: str, rows: Any, activation: Activation | None) -> None:
        found = None if name in measured.inputs else input_profile(rows, activation)
        if found is not None:
            measured.inputs[name] = found

    with frontend.probe(layers, watch) as ratios:
        first = frontend.run(model, batches[0])  # layer by layer on one batch; it costs two forwards
    measured.layers = dict(ratios)
    tracked = progress.track(batches, "measure")
    if is_language_model(batches, main_output(first)):
        tokens = (tokens_of(batch) for batch in tracked)
        measured.before, measured.after = compare(both.float, both.quantized, tokens)
    else:
        signal = noise = 0.0
        for batch in tracked:
            expected, actual = both.float(batch), both.quantized(batch)
            exact = _float64(expected)
            signal += _power(exact)
            noise += _power(exact - _float64(actual))
        measured.output_sqnr = decibels(signal, noise)
    measured.seconds = None if frontend.simulates else (both.seconds[0], both.seconds[1])
    return measured


@dataclass(slots=True)
class _BothForms:
    """A model that runs in either form, and what that has taken of each; between runs it is float."""

    model: Any
    switches: Sequence[Switch]
    frontend: Frontend
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def float(self, batch: Any) -> Any:
        return self._run(batch, 0)

    def quantized(self, batch: Any) -> Any:
        for switch in self.switches:
            switch.install()
        try:
            return self._run(batch, 1)
        finally:
            for switch in self.switches:
                switch.restore()

    def _run(self, batch: Any, form: int) -> Any:
        started = time.perf_counter()
        output = main_output(self.frontend.run(self.model, batch))
        if is_torch(output) and output.is_cuda:
            output.sum().item()  # waits until the device is done
        self.seconds[form] += time.perf_counter() - started
        return output


def _float64(values: Any) -> Any:
    xp = array_namespace(values)
    return xp.astype(values, xp.float64)


def _power(values: Any) -> float:
    return float(array_namespace(values).sum(values * values))


def main_output(output: Any) -> Any:
    """Return the array that counts: the logits, or the first array, of what a model returned."""
    if isinstance(output, dict) and "logits" in output:
        return output["logits"]
    for attribute in ("logits", "last_hidden_state"):
        if hasattr(output, attribute):
            return getattr(output, attribute)
    while isinstance(output, (tuple, list, dict)):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    if not hasattr(output, "shape"):
        raise RecipeError(f"the model returned {type(output).__name__}, which has no array to compare")
    return output


def tokens_of(batch: Any) -> Any:
    """Return the token ids of a batch of a language model."""
    return batch["input_ids"] if isinstance(batch, dict) else batch


def is_language_model(batches: Sequence[Any], output: Any) -> bool:
    """Whether batches are token ids (sequences, length) and the output of the first one has a score for each token."""
    if isinstance(batches[0], dict) and set(batches[0]) != {"input_ids"}:
        return False
    tokens = tokens_of(batches[0])
    whole_numbers = hasattr(tokens, "dtype") and array_namespace(tokens).isdtype(tokens.dtype, "integral")
    if not whole_numbers or output.ndim != 3 or tuple(output.shape[:2]) != tuple(tokens.shape):
        return False
    # Tags, or features, of each token are no scores of tokens: there are fewer of them.
    return all(int(tokens_of(batch).max()) < output.shape[-1] for batch in batches)
