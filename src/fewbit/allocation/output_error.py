"""The noise to signal of outputs when a layer alone is rounded, by second moments and without another forward.

Where there are gradients, of the model's output: sum_t g_t |dW x_t|^2 / sum |y|^2 by random projections of y. Else of
the layer's own: tr(dW H dW^T) / tr(W H W^T), which does not see what comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewbit.allocation.fisher import scores
from fewbit.allocation.slopes import SLOPES, slopes_of
from fewbit.allocation.subject import Pair, Scores, Subject, by_layer
from fewbit.evaluation.fidelity import output_power

_STATISTIC = "second_moment"


def output_error(subject: Subject, pairs: Sequence[Pair]) -> Scores:
    """Return the scores of layers whose outputs are rows of inputs times weights."""
    if subject.framework in SLOPES:
        slopes = slopes_of(subject, labelled=False, what="output_error")
        return scores(subject, pairs, slopes.rows, 1.0 / max(slopes.power, 1e-300))
    return _of_own_outputs(subject, pairs)


def _of_own_outputs(subject: Subject, pairs: Sequence[Pair]) -> Scores:
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
