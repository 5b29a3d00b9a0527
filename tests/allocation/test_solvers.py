"""The integer program and the greedy one, against all selections there are."""

import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbit.allocation.exact import allocate_exactly
from fewbit.allocation.greedy import allocate_greedily, frontier
from fewbit.allocation.selection import Selection, least
from fewbit.errors import MissingExtraError, PlanError

UNIT = st.integers(1, 4).flatmap(
    lambda count: st.tuples(
        st.lists(st.floats(0, 10), min_size=count, max_size=count),
        st.lists(st.integers(1, 100), min_size=count, max_size=count),
    )
)


@st.composite
def problems(draw):
    units = draw(st.lists(UNIT, min_size=1, max_size=5))
    costs, weights = ([own[which] for own in units] for which in (0, 1))
    low, high = least(weights), sum(max(own) for own in weights)
    return costs, weights, draw(st.integers(int(low), int(high)))


def best_of_all(costs, weights, limit):
    every = (Selection(choices) for choices in itertools.product(*(range(len(own)) for own in costs)))
    return min(own.sum(costs) for own in every if own.sum(weights) <= limit)


@given(problems())
def test_the_exact_solver_finds_the_best_of_all_selections_within_the_limit(problem):
    costs, weights, limit = problem
    found = allocate_exactly(costs, weights, limit)
    assert found.sum(weights) <= limit
    # HiGHS stops at a gap of 1e-6 of sums that are divided by the largest one there is.
    assert found.sum(costs) <= best_of_all(costs, weights, limit) + 1e-5 * sum(max(own) for own in costs)


@given(problems())
def test_the_greedy_one_stays_within_the_limit_and_is_never_below_the_optimum(problem):
    costs, weights, limit = problem
    found = allocate_greedily(costs, weights, limit)
    assert found.sum(weights) <= limit
    assert found.sum(costs) >= best_of_all(costs, weights, limit)


@given(problems())
def test_selections_of_the_frontier_take_more_and_cost_less(problem):
    costs, weights, _ = problem
    found = [(own.sum(weights), own.sum(costs)) for own in frontier(costs, weights)]
    assert found[0][0] == least(weights)
    assert found[-1][1] == pytest.approx(least(costs), abs=1e-9)  # sums in another order
    assert all(a[0] < b[0] and a[1] > b[1] - 1e-9 for a, b in itertools.pairwise(found))


def test_hundreds_of_layers_are_solved_with_a_stated_gap():
    # Costs that halve for each bit, of layers whose sensitivities span three orders.
    costs = [[2.0 ** (-2 * bits) * (1 + unit % 37) ** 2 for bits in (2, 3, 4, 5, 6, 8)] for unit in range(211)]
    weights = [[bits * (1000 + 7 * (unit % 11)) for bits in (2, 3, 4, 5, 6, 8)] for unit in range(211)]
    limit = 0.5 * sum(own[-1] for own in weights)
    found, other = allocate_exactly(costs, weights, limit), allocate_greedily(costs, weights, limit)
    assert found.gap is not None
    assert found.gap <= 1e-3
    assert found.sum(weights) <= limit
    assert found.sum(costs) <= other.sum(costs)


@pytest.mark.parametrize("solver", [allocate_exactly, allocate_greedily])
def test_a_limit_that_nothing_reaches_is_refused_with_the_lowest_sum(solver):
    with pytest.raises(PlanError, match=r"comes down to 5: the lowest is 7; raise the budget"):
        solver([[1.0, 0.0], [1.0, 0.0]], [[3, 9], [4, 9]], 5)


def test_without_scipy_the_greedy_solver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match='solver="greedy"'):
        allocate_exactly([[1.0, 0.0]], [[3, 9]], 5)
