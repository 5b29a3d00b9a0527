"""The noise to signal of outputs when a layer alone is rounded, by second moments and without another forward.

Where there are gradients, of the model's output: sum_t g_t |dW x_t|^2 / sum |y|^2 by random projections of y. Else of
the layer's own, which does not see what comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence

from fewbit.allocation.fisher import scores
from fewbit.allocation.own_output_error import own_output_error
from fewbit.allocation.slopes import SLOPES, slopes_of
from fewbit.allocation.subject import Pair, Scores, Subject


def output_error(subject: Subject, pairs: Sequence[Pair]) -> Scores:
    """Return the scores of layers whose outputs are rows of inputs times weights."""
    if subject.framework in SLOPES:
        slopes = slopes_of(subject, labelled=False, what="output_error")
        return scores(subject, pairs, slopes.rows, 1.0 / max(slopes.power, 1e-300))
    return own_output_error(subject, pairs)
