"""What errors of a layer's output do to the loss, to second order: (1 / 2) sum_t g_t |dW x_t|^2, a prediction.

g_t is the mean square of the loss's gradient at the output of row t: the diagonal of the Fisher information. Of a
language model it estimates the KL divergence in nats, of any other the noise to signal of its output. Source: Theis et
al., arXiv 1801.05787; see the front end's `output_slopes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fewbit.allocation.slopes import scores_by_rows, slopes_of
from fewbit.allocation.subject import Pair, Scores, Subject


def fisher(subject: Subject, pairs: Sequence[Pair]) -> Scores:
    """Return the scores of layers whose outputs are rows of inputs times weights, and of embeddings.

    Raises:
        PlanError: the model has no gradients.

    """
    language = subject.reference.language
    slopes = slopes_of(subject, labelled=language, what="fisher")
    # Of random projections the sum is the power of the error, of labels twice the divergence.
    scale = 0.5 / max(slopes.predictions, 1) if language else 1.0 / max(slopes.power, 1e-300)
    return scores_by_rows(subject, pairs, slopes.rows, scale)
