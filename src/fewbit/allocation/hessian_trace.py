"""The mean curvature of the loss in a layer's weights times what rounding adds to them: (1 / 2) tr(H) / n |dW|^2.

The trace is Hutchinson's estimate. Source: HAWQ-V2, arXiv 1911.03852. A trace below 0, which is noise, counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from fewbit.allocation.subject import Pair, Scores, Subject, by_layer
from fewbit.catalogue import lookup
from fewbit.errors import PlanError
from fewbit.evaluation.fidelity import power

#: What estimates traces, by framework.
TRACES = {"torch": "fewbit.frontends.torch.weight_curvature:WeightCurvature"}
#: Random signs that it is averaged over.
DRAWS = 4


def hessian_trace(subject: Subject, pairs: Sequence[Pair]) -> Scores:
    """Return the scores of all layers, a prediction of a language model, of others by the power of their output.

    Raises:
        PlanError: the model cannot be differentiated twice.

    """
    if subject.framework not in TRACES:
        raise PlanError(f"hessian_trace: an {subject.framework} model gives no gradients; use output_error")
    language, names = subject.reference.language, by_layer(pairs)
    run: Any = lookup(TRACES, subject.framework, what="framework")(
        subject.model, [subject.by_name[name] for name in names], subject.batches, labelled=language, draws=DRAWS
    )
    for _ in subject.progress.track(run, "curvature"):
        pass
    if run.problem is not None:
        raise PlanError(f"hessian_trace: {run.problem}; use fisher, output_error or kl_divergence")
    scale = 0.5 / max(run.predictions, 1) if language else 1.0 / max(run.power, 1e-300)
    found: Scores = {}
    for name, candidates in names.items():
        layer = subject.by_name[name]
        # Of a weight that layers share it is that of all of its places.
        trace = max(run.traces[name], 0.0) / (prod(layer.shape) * (1 + len(layer.tied)))
        for candidate, _, error in subject.errors(name, candidates):
            found[name, candidate] = scale * trace * power(error)
    return found
