"""One global scale for layers that a runtime fuses: those of a module that are given the same, such as q, k and v.

NVFP4 has a float32 for the tensor above the e4m3 scales of its groups. A runtime stacks such weights and multiplies
once, so that they need the same float: that of the largest magnitude in any of them. Source: vLLM's fused layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fewbit.algorithms.solution import Solution
from fewbit.interfaces import Frontend, Layer
from fewbit.numerics.namespace import Array, array_namespace, stop_gradient, to_float32
from fewbit.plan_row import PlanRow
from fewbit.planning import Plan
from fewbit.qtensor import QTensor
from fewbit.ranges.fixed import Fixed
from fewbit.recipe import Recipe
from fewbit.schemes.scheme import Scheme

#: Of a layer whose partners are unknown.
ALONE = "its global scale is its own: a run would show which layers share its input; give a batch"


def names_global_scales(recipe: Recipe) -> bool:
    """Whether a rule asks for weights with a scale above their scales."""
    return any(rule.weight is not None and rule.weight.has_unit for rule in recipe.rules)


def with_shared_scales(made: Plan, frontend: Frontend, model: Any, batch: Any | None) -> Plan:
    """Return the plan with the partners of each layer whose global scale is shared, and a note that says so."""
    concerned = _concerned(made)
    if not concerned:
        return made
    groups = frontend.shared_inputs(model, [row.layer for row in concerned], batch)
    if groups is None:
        alone = {row.layer.name for row in concerned}
        noted = [replace(row, notes=(*row.notes, ALONE)) if row.layer.name in alone else row for row in made.rows]
        return replace(made, rows=tuple(noted))
    return with_partners(made, groups)


def with_partners(made: Plan, groups: Iterable[Sequence[str]]) -> Plan:
    """Return the same plan where each of the `groups` is given the same; others in them do not matter."""
    rows = {row.layer.name: row for row in _concerned(made)}
    known = [[name for name in group if name in rows] for group in groups]
    partners = {name: _alike(name, group, rows) for group in known for name in group}
    return replace(made, rows=tuple(_fused(row, partners.get(row.layer.name, ())) for row in made.rows))


def _concerned(made: Plan) -> list[PlanRow]:
    return [row for row in made.rows if row.scheme and row.layer.kind == "linear" and row.scheme.has_unit]


class SharedScales:
    """The schemes with which the layers of a plan are solved."""

    def __init__(self, rows: Sequence[PlanRow], weight: Callable[[Layer], Array]) -> None:
        """Prepare; `weight` returns that of a layer which is still float."""
        self._rows, self._weight = {row.layer.name: row for row in rows}, weight
        self._found: dict[frozenset[str], float] = {}

    def scheme(self, row: PlanRow) -> Scheme:
        """Return the scheme of a layer, its global scale fixed if it shares it; ask before any partner is replaced."""
        assert row.scheme is not None
        if not row.fused:
            return row.scheme
        names = frozenset((row.layer.name, *row.fused))
        if names not in self._found:
            layers = [self._rows[name].layer for name in sorted(names)]
            self._found[names] = max(_largest_scale(self._weight(layer), row.scheme) for layer in layers)
        largest, inner = self._found[names], row.scheme.scale_scheme
        # Weights of nothing but zeros need no scale at all.
        if inner is None or largest <= 0.0:
            return row.scheme
        return replace(row.scheme, scale_scheme=replace(inner, range_method=Fixed(_bound(inner, largest))))


def under(solution: Solution, scheme: Scheme) -> Solution:
    """Return a solution whose weight says that it has `scheme`, which differs in how ranges are chosen only."""
    found = solution.qtensor
    inner = found.scale
    if isinstance(inner, QTensor) and scheme.scale_scheme is not None:
        inner = replace(inner, scheme=scheme.scale_scheme)
    return replace(solution, qtensor=replace(found, scale=inner, scheme=scheme))


def _alike(name: str, group: Sequence[str], rows: dict[str, PlanRow]) -> tuple[str, ...]:
    return tuple(other for other in group if other != name and rows[other].scheme == rows[name].scheme)


def _fused(row: PlanRow, partners: tuple[str, ...]) -> PlanRow:
    if not partners:
        return row
    names = " and ".join(name.rpartition(".")[2] for name in partners)
    return replace(row, fused=partners, notes=(*row.notes, f"one global scale with {names}"))


def _bound(inner: Scheme, largest: float) -> float:
    """Return the upper bound that the scheme of scales has for a tensor of them in which this is the largest."""
    _, high = inner.ranging(np.asarray([largest], np.float32), (0,), inner.grid)
    return float(high[0])


def _largest_scale(weight: Array, scheme: Scheme) -> float:
    """Return the largest scale that a group of `weight` asks for."""
    xp = array_namespace(weight)
    largest = xp.max(xp.abs(to_float32(stop_gradient(weight))))
    return float(scheme.grid.scale(-largest, largest)) if float(largest) > 0.0 else 0.0
