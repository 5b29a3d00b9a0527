"""Measure a model in its float and in its quantized form, batch by batch, while both are in memory.

Language models are scored by `quality.compare`; any other module by the SQNR of its output. Each layer's own output is
watched on the first batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewbit.errors import RecipeError
from fewbit.evaluation.fidelity import decibels
from fewbit.evaluation.quality import Quality, compare
from fewbit.interfaces import Forms, Frontend, Progress, Switch
from fewbit.numerics.namespace import array_namespace


@dataclass(slots=True)
class Measured:
    """What running both forms of the model showed."""

    before: Quality | None = None
    after: Quality | None = None
    output_sqnr: float | None = None
    layers: dict[str, float] | None = None


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

    def forward(batch: Any, *, quantized: bool) -> Any:
        for switch in (*layers, *beside):
            (switch.install if quantized else switch.restore)()
        try:
            return main_output(frontend.run(model, batch))
        finally:
            for switch in (*layers, *beside):
                switch.restore()

    measured = Measured()
    with frontend.probe(layers) as ratios:
        first = frontend.run(model, batches[0])  # layer by layer on one batch; it costs two forwards
    measured.layers = dict(ratios)
    tracked = progress.track(batches, "measure")
    if is_language_model(batches, main_output(first)):
        measured.before, measured.after = compare(
            lambda tokens: forward(tokens, quantized=False),
            lambda tokens: forward(tokens, quantized=True),
            (tokens_of(batch) for batch in tracked),
        )
        return measured
    signal = noise = 0.0
    for batch in tracked:
        expected, actual = forward(batch, quantized=False), forward(batch, quantized=True)
        exact = _float64(expected)
        signal += _power(exact)
        noise += _power(exact - _float64(actual))
    measured.output_sqnr = decibels(signal, noise)
    return measured


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
