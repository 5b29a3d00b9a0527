"""What each candidate costs each layer: cheap scores of all pairs, put to scale by a few measured divergences.

cost = score * exp(b_layer + a_candidate), fitted to log(measured / score): the first is what an error there counts,
interpolated between layers of one kind by their place; the second what an algorithm gains on rounding to nearest under
a scheme. What has no cheap score is measured for every candidate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fewbit.allocation.metrics import scored
from fewbit.allocation.own_output_error import own_output_error
from fewbit.allocation.slopes import SLOPES
from fewbit.allocation.subject import Pair, Scores, Subject
from fewbit.errors import PlanError

#: Pairs that are measured, about.
PAIRS = 96
#: Divergences below this are roundings of float32, and no scale for anything.
_NOISE = 1e-7
#: How far a layer may be from the usual one: what lies beyond is noise of few tokens.
_APART = 30.0
#: Candidates that are measured in turn, the coarsest with them.
_TURNS = 5
#: How strongly what is not known is drawn to 0.
_RIDGE = 1e-3


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
            notes.append(f"{error}; layers were scored by the errors of their own outputs")
            return own_output_error(subject, subject.pairs), "output_error"
    return scored("output_error", subject, subject.pairs), "output_error"


def kind_of(name: str) -> str:
    """Return what layers at the same place of alike blocks have in common.

    >>> kind_of("model.layers.12.mlp.down_proj")
    'model.layers.*.mlp.down_proj'
    """
    return re.sub(r"\d+", "*", name)


def chosen_pairs(subject: Subject, cheap: Mapping[Pair, float], pairs: int) -> list[Pair]:
    """Return which pairs to measure: of each kind some layers, evenly spread, in two candidates each.

    One is the coarsest, whose divergence is far from noise; the other one goes through the next ones in turn.
    """
    kinds: dict[str, list[str]] = {}
    for name, rows in subject.rows.items():
        if any((name, candidate) in cheap for candidate in rows):
            kinds.setdefault(kind_of(name), []).append(name)
    each = max(1, pairs // (2 * max(len(kinds), 1)))
    found: list[Pair] = []
    turn = 0
    for names in kinds.values():
        places = np.unique(np.linspace(0, len(names) - 1, min(each, len(names))).round().astype(int))
        for name in (names[place] for place in places):
            order = _by_size(subject, name, [own for own in subject.rows[name] if (name, own) in cheap])
            second = order[1:_TURNS]
            found += [(name, own) for own in (*order[:1], *([second[turn % len(second)]] if second else []))]
            turn += 1
    return found


def _by_size(subject: Subject, name: str, candidates: Sequence[str]) -> list[str]:
    return sorted(candidates, key=lambda own: subject.rows[name][own].bytes_after)


def scaled(subject: Subject, cheap: Mapping[Pair, float], measured: Mapping[Pair, float]) -> Scores:
    """Return the costs of all pairs; those without a cheap score are what was measured."""
    ratios = {
        pair: math.log(own / cheap[pair])
        for pair, own in measured.items()
        if own > _NOISE and cheap.get(pair, 0.0) > 0.0
    }
    layers, gains = _fitted(ratios, {pair: _way(subject, pair) for pair in ratios})
    places = {layer.name: float(place) for place, layer in enumerate(subject.layers)}
    curves: dict[str, dict[float, float]] = {}
    for name, own in layers.items():
        curves.setdefault(kind_of(name), {})[places[name]] = own
    usual = float(np.median(list(layers.values()))) if layers else 0.0
    found: Scores = {}
    for (name, candidate), score in cheap.items():
        curve = curves.get(kind_of(name))
        own = (
            usual if curve is None else float(np.interp(places[name], sorted(curve), [curve[x] for x in sorted(curve)]))
        )
        found[name, candidate] = score * math.exp(own + _gain(subject, (name, candidate), gains))
    return found | {pair: own for pair, own in measured.items() if pair not in cheap}


#: An algorithm and a candidate.
_Way = tuple[str, str]


def _way(subject: Subject, pair: Pair) -> _Way:
    algorithm = subject.rows[pair[0]][pair[1]].algorithm
    return ("" if algorithm is None else algorithm.name, pair[1])


def _fitted(ratios: Mapping[Pair, float], ways: Mapping[Pair, _Way]) -> tuple[dict[str, float], dict[_Way, float]]:
    """Return b by layer and a by algorithm and candidate, of the least squares of ratio - b - a."""
    layers = list(dict.fromkeys(name for name, _ in ratios))
    kinds = list(dict.fromkeys(ways.values()))
    if not layers:
        return {}, {}
    rows = np.zeros((len(ratios), len(layers) + len(kinds)))
    for row, pair in enumerate(ratios):
        rows[row, layers.index(pair[0])] = rows[row, len(layers) + kinds.index(ways[pair])] = 1.0
    # What only the sum of both is known of stays small; among layers more than among schemes.
    ridge = np.diag([_RIDGE] * len(layers) + [_RIDGE / 10] * len(kinds))
    target = np.concatenate([list(ratios.values()), np.zeros(rows.shape[1])])
    found = np.linalg.lstsq(np.concatenate([rows, ridge]), target, rcond=None)[0]
    middle, reach = float(np.median(found[: len(layers)])), math.log(_APART)
    own = np.clip(found[: len(layers)], middle - reach, middle + reach)
    return dict(zip(layers, own.tolist(), strict=True)), dict(zip(kinds, found[len(layers) :].tolist(), strict=True))


def _gain(subject: Subject, pair: Pair, gains: Mapping[_Way, float]) -> float:
    """Return what is known of the way of a pair, or of the candidate next to it in size."""
    name, candidate = pair
    order = _by_size(subject, name, list(subject.rows[name]))
    known = [own for own in order if _way(subject, (name, own)) in gains]
    if not known:
        return 0.0
    nearest = min(known, key=lambda own: abs(order.index(own) - order.index(candidate)))
    return gains[_way(subject, (name, nearest))]
