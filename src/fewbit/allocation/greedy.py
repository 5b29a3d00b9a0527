"""Allocation along convex hulls: always the step that saves most for what it takes, as long as it fits.

It is the solution of the Lagrangian min cost + lambda weight for each lambda, filled up with steps that still fit.
Source: Shoham and Gersho, Efficient bit allocation for an arbitrary set of quantizers, 1988.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush

from fewbit.allocation.selection import Selection, Table, require_reachable


def allocate_greedily(costs: Table, weights: Table, limit: float) -> Selection:
    """Return a choice a unit with a small sum of costs whose sum of weights is at most `limit`.

    Raises:
        PlanError: there is none.

    """
    require_reachable(weights, limit)
    found = [_lightest(*own) for own in zip(costs, weights, strict=True)]
    spent = sum(own[place] for own, place in zip(weights, found, strict=True))
    for unit, place in _steps(costs, weights):
        taken = weights[unit][place] - weights[unit][found[unit]]
        gained = costs[unit][found[unit]] - costs[unit][place]
        if gained > 0 and spent + taken <= limit:
            spent, found[unit] = spent + taken, place
    return _lowered(costs, weights, found, limit)


def frontier(costs: Table, weights: Table) -> Iterator[Selection]:
    """Yield the selections on the convex hull of (weight, cost) of the whole, from the lightest on."""
    found = [_lightest(*own) for own in zip(costs, weights, strict=True)]
    yield Selection(tuple(found))
    for unit, place in _steps(costs, weights):
        found[unit] = place
        yield Selection(tuple(found))


def _lowered(costs: Table, weights: Table, found: list[int], limit: float) -> Selection:
    """Return the selection with every unit moved to the cheapest choice that still fits, hull or not."""
    for unit, own in enumerate(costs):
        spent = sum(weights[other][place] for other, place in enumerate(found) if other != unit)
        fitting = [place for place in range(len(own)) if spent + weights[unit][place] <= limit]
        best = min(fitting, key=list(zip(own, weights[unit], strict=True)).__getitem__)
        if own[best] < own[found[unit]]:
            found[unit] = best
    return Selection(tuple(found))


def _lightest(costs: Sequence[float], weights: Sequence[float]) -> int:
    return min(range(len(costs)), key=lambda place: (weights[place], costs[place]))


def _steps(costs: Table, weights: Table) -> Iterator[tuple[int, int]]:
    """Yield (unit, place) in the order of what a step saves for each weight that it takes."""
    hulls = [_hull(*own) for own in zip(costs, weights, strict=True)]
    waiting = [(-_slope(costs[unit], weights[unit], hull[0], hull[1]), unit, 1) for unit, hull in enumerate(hulls)
               if len(hull) > 1]  # fmt: skip
    heapify(waiting)
    while waiting:
        _, unit, step = heappop(waiting)
        hull = hulls[unit]
        yield unit, hull[step]
        if step + 1 < len(hull):
            slope = _slope(costs[unit], weights[unit], hull[step], hull[step + 1])
            heappush(waiting, (-slope, unit, step + 1))


def _hull(costs: Sequence[float], weights: Sequence[float]) -> list[int]:
    """Return the choices on the lower convex hull, from the lightest to the cheapest."""
    order = sorted(range(len(costs)), key=lambda place: (weights[place], costs[place]))
    hull: list[int] = []
    for place in order:
        if hull and costs[place] >= costs[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(costs, weights, hull[-2], hull[-1]) <= _slope(costs, weights, hull[-1], place):
            hull.pop()
        hull.append(place)
    return hull


def _slope(costs: Sequence[float], weights: Sequence[float], start: int, stop: int) -> float:
    """Return what is saved for each weight on the way from one choice to a heavier one."""
    taken = weights[stop] - weights[start]
    return (costs[start] - costs[stop]) / taken if taken > 0 else float("inf")
