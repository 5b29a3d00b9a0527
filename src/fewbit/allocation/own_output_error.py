"""The noise to signal of a layer's own output when it is rounded, tr(dW H dW^T) / tr(W H W^T), by second moments.

It needs no gradients, and does not see what comes after the layer: what its output counts there is for measured
divergences to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewbit.allocation.subject import Pair, Scores, Subject, by_layer
from fewbit.evaluation.fidelity import output_power

_STATISTIC = "second_moment"


def own_output_error(subject: Subject, pairs: Sequence[Pair]) -> Scores:
    """Return the scores of layers whose outputs are rows of inputs times weights."""
    layers = by_layer(pairs)
    wanted = {name: (_STATISTIC,) for name in layers if subject.by_name[name].multiplies_rows}
    found: Scores = {}
    run: Any = subject.frontend.calibrate(subject.model, subject.layers, wanted, subject.batches, sequential=False)
    for stage in subject.progress.track(run, "output errors"):
        for part in stage:
            for layer in part.layers:
                seen = part.statistics.get(layer.name, {}).get(_STATISTIC)
                if seen is None or not seen.count:
                    continue
                moment = seen.result()
                for candidate, weight, error in subject.errors(layer.name, layers[layer.name]):
                    signal = max(output_power(weight, moment), 1e-300)
                    found[layer.name, candidate] = output_power(error, moment) / signal
    return found
