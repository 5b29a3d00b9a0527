"""Ways to say how sensitive a layer is to a scheme, by name: from a subject and pairs to scores, greater is worse.

`weight_error` needs no data, `output_error`, `fisher` and `hessian_trace` a few runs for all pairs together, and
`kl_divergence` a run for each pair. A pair that a metric has no answer for is missing in what it returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fewbit.allocation.subject import Pair, Scores, Subject
from fewbit.catalogue import lookup

#: Metrics by name.
METRICS = {
    "weight_error": "fewbit.allocation.weight_error:weight_error",
    "output_error": "fewbit.allocation.output_error:output_error",
    "fisher": "fewbit.allocation.fisher:fisher",
    "hessian_trace": "fewbit.allocation.hessian_trace:hessian_trace",
    "kl_divergence": "fewbit.allocation.kl_divergence:kl_divergence",
}
#: Those whose scores depend on how codes are found.
_SOLVED = ("kl_divergence",)


class Metric(Protocol):
    """How sensitive layers are to schemes."""

    def __call__(self, subject: Subject, pairs: Sequence[Pair]) -> Scores:
        """Return the scores of `pairs`, those that there are; greater is worse.

        Raises:
            PlanError: the model cannot be scored so.

        """


def scored(metric: str, subject: Subject, pairs: Sequence[Pair]) -> Scores:
    """Return the scores of `pairs` under a metric, those that are known from the cache.

    Raises:
        RecipeError: no such metric.
        PlanError: the model cannot be scored so.

    """
    own: Metric = lookup(METRICS, metric, what="metric")
    keys = {pair: subject.key(metric, pair, solved=metric in _SOLVED) for pair in pairs} if subject.cache.path else {}
    known = {pair: score for pair, key in keys.items() if (score := subject.cache.get(key)) is not None}
    missing = [pair for pair in pairs if pair not in known]
    found = own(subject, missing) if missing else {}
    for pair, score in found.items():
        if pair in keys:
            subject.cache.put(keys[pair], score)
    if found:
        subject.cache.save()
    return {pair: (known | found)[pair] for pair in pairs if pair in known or pair in found}
