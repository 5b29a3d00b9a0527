"""What each candidate costs each layer: cheap scores of all pairs, put to scale by a few measured divergences.

cost = score * ratio, ratio = measured / score where a layer was measured; between layers of one kind its logarithm is
interpolated by their place in the model. What has no cheap score is measured for every candidate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fewbit.allocation.metrics import scored
from fewbit.allocation.slopes import SLOPES
from fewbit.allocation.subject import Pair, Scores, Subject
from fewbit.errors import PlanError

#: Pairs that are measured, about.
PAIRS = 96
#: Divergences below this are roundings of float32, and no scale for anything.
_NOISE = 1e-7
#: How far a measured ratio may be from the usual one of its kind: what lies beyond is noise of few tokens.
_APART = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Costs of pairs, and where they come from."""

    costs: Scores
    #: What was measured with only one layer changed.
    measured: Scores
    #: The cheap metric, and how many scores it gave.
    metric: str
    scored: int
    notes: tuple[str, ...] = field(default=())

    @property
    def described(self) -> str:
        """The metrics in words."""
        return f"{self.metric}, refined by kl_divergence" if self.measured else self.metric


def costs_of(subject: Subject, metric: str = "auto", pairs: int = PAIRS) -> Costs:
    """Return what every pair of a subject costs.

    `metric`: the cheap one, or `auto`: `fisher` where there are gradients, else `output_error`. `pairs`: about how many
    divergences of the whole model are measured; 0: none, as for `kl_divergence`, which measures every pair itself.
    """
    notes: list[str] = []
    cheap, name = _screen(subject, metric, notes)
    if name == "kl_divergence":
        return Costs(costs=cheap, measured=cheap, metric=name, scored=0)
    chosen = chosen_pairs(subject, cheap, pairs) if pairs else []
    measured = scored("kl_divergence", subject, chosen) if chosen else {}
    missing = [pair for pair in subject.pairs if pair not in cheap and pair not in measured]
    if missing and not pairs:
        raise PlanError(
            f"{name} has no score for {missing[0][0]}, one of {len(missing)} pairs; let some divergences be measured, "
            "or keep it"
        )
    measured |= scored("kl_divergence", subject, missing) if missing else {}
    if missing:
        layers = len({own for own, _ in missing})
        notes.append(f"{name} has no score for {layers} layers, whose divergences were measured for every candidate")
    return Costs(
        costs=scaled(subject, cheap, measured), measured=measured, metric=name, scored=len(cheap), notes=tuple(notes)
    )


def _screen(subject: Subject, metric: str, notes: list[str]) -> tuple[Scores, str]:
    if metric != "auto":
        return scored(metric, subject, subject.pairs), metric
    if subject.framework in SLOPES:
        try:
            return scored("fisher", subject, subject.pairs), "fisher"
        except PlanError as error:
            notes.append(f"{error}; all divergences are measured instead")
            return {}, "kl_divergence of every pair"
    return scored("output_error", subject, subject.pairs), "output_error"


def kind_of(name: str) -> str:
    """Return what layers at the same place of alike blocks have in common.

    >>> kind_of("model.layers.12.mlp.down_proj")
    'model.layers.*.mlp.down_proj'
    """
    return re.sub(r"\d+", "*", name)


def chosen_pairs(subject: Subject, cheap: Mapping[Pair, float], pairs: int) -> list[Pair]:
    """Return which pairs to measure: of each kind some layers, evenly spread, each in its two coarsest candidates."""
    kinds: dict[str, list[str]] = {}
    for name, rows in subject.rows.items():
        if any((name, candidate) in cheap for candidate in rows):
            kinds.setdefault(kind_of(name), []).append(name)
    each = max(1, pairs // (2 * max(len(kinds), 1)))
    found: list[Pair] = []
    for names in kinds.values():
        places = np.unique(np.linspace(0, len(names) - 1, min(each, len(names))).round().astype(int))
        for name in (names[place] for place in places):
            rows = {own: row for own, row in subject.rows[name].items() if row.scheme and (name, own) in cheap}
            found += [(name, own) for own in sorted(rows, key=lambda own: rows[own].bytes_after)[:2]]
    return found


def scaled(subject: Subject, cheap: Mapping[Pair, float], measured: Mapping[Pair, float]) -> Scores:
    """Return the costs: cheap scores times the ratio of their layer, and what was measured where it was."""
    places = {layer.name: float(place) for place, layer in enumerate(subject.layers)}
    ratios: dict[str, dict[str, list[float]]] = {}
    for (name, candidate), own in measured.items():
        score = cheap.get((name, candidate), 0.0)
        if score > 0.0 and own > _NOISE:
            ratios.setdefault(kind_of(name), {}).setdefault(name, []).append(float(np.log(own / score)))
    curves = {kind: _curve(own, places) for kind, own in ratios.items()}
    usual = float(np.median([own for curve in curves.values() for own in curve[1]])) if curves else 0.0
    found: Scores = {}
    for (name, candidate), score in cheap.items():
        curve = curves.get(kind_of(name))
        ratio = usual if curve is None else float(np.interp(places[name], *curve))
        found[name, candidate] = score * float(np.exp(ratio))
    return found | {pair: own for pair, own in measured.items() if pair not in cheap}


def _curve(layers: Mapping[str, Sequence[float]], places: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """Return places and mean logarithms of ratios, those far from the usual drawn towards it."""
    means = {name: float(np.mean(own)) for name, own in layers.items()}
    middle, reach = float(np.median(list(means.values()))), float(np.log(_APART))
    order = sorted(means, key=lambda name: places[name])
    return [places[name] for name in order], [
        float(np.clip(means[name], middle - reach, middle + reach)) for name in order
    ]
