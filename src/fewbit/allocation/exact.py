"""Allocation as an integer program, x_us in {0, 1}: min sum c_us x_us, sum_s x_us = 1, sum w_us x_us <= limit.

Solved by HiGHS through scipy, which says how far from the optimum its answer may be. Costs and weights are divided by
their largest sums first, as its tolerances are absolute; what exceeds the limit within them is solved anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbit.allocation.greedy import allocate_greedily
from fewbit.allocation.selection import Selection, Table, require_reachable
from fewbit.errors import MissingExtraError

#: Share of the optimum that an answer may be above it, and seconds after which the best one so far is taken.
GAP, SECONDS = 1e-6, 30.0
#: How often a limit is tightened by what an answer was above it.
_TRIES = 8


def allocate_exactly(costs: Table, weights: Table, limit: float) -> Selection:
    """Return the choice a unit with the least sum of costs whose sum of weights is at most `limit`.

    Raises:
        PlanError: there is none.
        MissingExtraError: scipy is not installed.

    """
    require_reachable(weights, limit)
    other = allocate_greedily(costs, weights, limit)
    tightened = limit
    for _ in range(_TRIES):
        found = _solved(costs, weights, tightened)
        if found is None:
            break
        over = found.sum(weights) - limit
        if over <= 0:
            return found if found.sum(costs) <= other.sum(costs) else Selection(other.choices, found.gap)
        tightened -= max(over, 1e-9 * limit)
    return other


def _solved(costs: Table, weights: Table, limit: float) -> Selection | None:
    optimize, sparse = _scipy()
    flat_costs = np.concatenate([np.asarray(own, np.float64) for own in costs])
    flat_weights = np.concatenate([np.asarray(own, np.float64) for own in weights])
    units = np.repeat(np.arange(len(costs)), [len(own) for own in costs])
    places = np.arange(len(units))
    one_each = sparse.csr_array((np.ones(len(units)), (units, places)), shape=(len(costs), len(units)))
    heaviest = sum(max(own) for own in weights) or 1.0
    found = optimize.milp(
        flat_costs / (sum(max(own) for own in costs) or 1.0),
        integrality=np.ones(len(units)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(flat_weights[None] / heaviest, -np.inf, limit / heaviest),
        ],
        options={"mip_rel_gap": GAP, "time_limit": SECONDS},
    )
    if found.x is None:
        return None
    chosen = np.split(found.x, np.cumsum([len(own) for own in costs])[:-1])
    gap = getattr(found, "mip_gap", None)
    return Selection(tuple(int(np.argmax(own)) for own in chosen), None if gap is None else float(gap))


def require_solver() -> None:
    """Raise `MissingExtraError` where scipy is not installed."""
    _scipy()


def _scipy() -> tuple[Any, Any]:
    try:
        from scipy import optimize, sparse
    except ImportError as error:
        raise MissingExtraError(
            "the exact solver is scipy's; pip install 'fewbit[allocation]', or use solver=\"greedy\""
        ) from error
    return optimize, sparse
