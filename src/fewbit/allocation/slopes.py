"""What errors of the outputs of layers cost, by a forward of the model and gradients back, which a front end runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewbit.allocation.subject import Pair, Scores, Subject, by_layer
from fewbit.catalogue import lookup
from fewbit.errors import PlanError

#: What gathers it, by framework; those that are not there compute no gradients.
SLOPES = {"torch": "fewbit.frontends.torch.output_slopes:OutputSlopes"}
_REMEDY = "use output_error or kl_divergence, which need no gradients"


def slopes_of(subject: Subject, *, labelled: bool, what: str) -> Any:
    """Return what was gathered on the batches of a subject: `rows` by layer, `power` and `predictions`.

    Raises:
        PlanError: the framework, or this model, has no gradients.

    """
    if subject.framework not in SLOPES:
        raise PlanError(f"{what}: an {subject.framework} model gives no gradients; {_REMEDY}")
    layers = [subject.by_name[name] for name in subject.rows]
    made: Any = lookup(SLOPES, subject.framework, what="framework")(
        subject.model, layers, subject.batches, labelled=labelled
    )
    for _ in subject.progress.track(made, "gradients"):
        pass
    if made.problem is not None:
        raise PlanError(f"{what}: {made.problem}; {_REMEDY}")
    return made


def scores_by_rows(subject: Subject, pairs: Sequence[Pair], rows: Mapping[str, Any], scale: float) -> Scores:
    """Return `scale` times what errors cost by `rows`, of the layers that are among them."""
    found: Scores = {}
    layers = by_layer(pair for pair in pairs if pair[0] in rows)
    for name in subject.progress.track(list(layers), "errors of layers"):
        for candidate, _, error in subject.errors(name, layers[name]):
            found[name, candidate] = scale * rows[name].power(error)
    return found
