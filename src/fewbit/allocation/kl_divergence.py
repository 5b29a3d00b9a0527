"""The divergence of the whole model with one layer changed: of a language model KL in nats, else noise to signal.

The layer is solved as the recipe will solve it, on calibration data of the float model; blocks before it are not run
again. The dearest metric, and the one that the others are estimates of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fewbit.allocation.subject import Pair, Scores, Subject, by_layer
from fewbit.errors import FewbitError
from fewbit.interfaces import Layer
from fewbit.numerics.namespace import Array
from fewbit.plan_row import PlanRow
from fewbit.ranges import OutputRange


def kl_divergence(subject: Subject, pairs: Sequence[Pair]) -> Scores:
    """Return the divergence of each of `pairs`."""
    layers = by_layer(pairs)
    _ = subject.reference  # before anything changes
    wanted = {
        name: tuple(dict.fromkeys(s for own in candidates for s in _statistics(subject.rows[name][own])))
        for name, candidates in layers.items()
    }
    found: Scores = {}
    for measured in _stages(subject, wanted):
        for layer, seen in measured:
            for candidate in layers[layer.name]:
                found[layer.name, candidate] = _measured(subject, layer, candidate, seen)
        _keep(subject, found)
    return found


def _stages(subject: Subject, wanted: Mapping[str, Sequence[str]]) -> Iterator[Iterable[tuple[Layer, Any]]]:
    """Yield layers with what is known of their inputs in the float model, some at a time."""
    what = "divergence of single layers"
    if not any(wanted.values()):
        for name in subject.progress.track(list(wanted), what):
            yield [(subject.by_name[name], {})]
        return
    run: Any = subject.frontend.calibrate(
        subject.model, subject.layers, wanted, subject.calibration or subject.batches, sequential=False
    )
    for _ in subject.progress.track(run.gradients, "gradients") if run.gradients else ():
        pass
    for stage in subject.progress.track(run, what):
        yield ((layer, part.statistics.get(layer.name, {})) for part in stage for layer in part.layers)


def _keep(subject: Subject, found: Scores) -> None:
    """Write what is known so far: these scores are dear, and a run may be stopped."""
    if subject.cache.path is not None:
        for pair, score in found.items():
            subject.cache.put(subject.key("kl_divergence", pair, solved=True), score)
        subject.cache.save()


def _measured(subject: Subject, layer: Layer, candidate: str, statistics: Any) -> float:
    row = subject.rows[layer.name][candidate]
    assert row.scheme is not None
    assert row.algorithm is not None
    weight: Array = subject.frontend.weight(subject.model, layer)
    try:
        qtensor = row.algorithm(weight, statistics, row.scheme).qtensor
        replacement = subject.frontend.replacement(subject.model, layer, qtensor)
        replacement.install()
        try:
            return subject.reference.divergence(subject.runs.outputs((layer.name,)))
        finally:
            replacement.restore()
    except FewbitError as error:
        raise type(error)(f"{layer.name} as {candidate}: {error}") from error


def _statistics(row: PlanRow) -> tuple[str, ...]:
    own = row.algorithm.statistics if row.algorithm else ()
    ranging = row.scheme.ranging if row.scheme else None
    return (*own, ranging.input_statistic) if isinstance(ranging, OutputRange) else own
