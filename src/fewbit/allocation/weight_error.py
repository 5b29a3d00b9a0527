"""What rounding leaves of the weights alone, |dW|^2 / |W|^2: needs no data, and sees nothing of what they are for."""

from __future__ import annotations

from collections.abc import Sequence

from fewbit.allocation.subject import Pair, Scores, Subject, by_layer
from fewbit.evaluation.fidelity import power


def weight_error(subject: Subject, pairs: Sequence[Pair]) -> Scores:
    """Return the noise to signal of weights that are rounded to nearest."""
    found: Scores = {}
    layers = by_layer(pairs)
    for name in subject.progress.track(list(layers), "weight error"):
        for candidate, weight, error in subject.errors(name, layers[name]):
            found[name, candidate] = power(error) / max(power(weight), 1e-300)
    return found
