"""The loop over measured models, with models that are made up: what it returns holds, however wrong predictions are."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbit.allocation.exact import allocate_exactly
from fewbit.allocation.greedy import allocate_greedily
from fewbit.allocation.loop import Loop, Task, groups_of, reported
from fewbit.errors import PlanError

BYTES = [3.0, 4.0, 5.0, 8.0]


def task(errors, limit, *, divergence, solver=allocate_greedily):
    """Units h.0.a, h.0.b, h.1.a, ... with costs that fall with their bytes."""
    units = [
        SimpleNamespace(name=f"h.{place // 2}.{'ab'[place % 2]}", layers=[SimpleNamespace(name=f"{place}")])
        for place in range(len(errors))
    ]
    costs = [[error * 4.0**-size for size in BYTES] for error in errors]
    sizes = [list(BYTES) for _ in errors]
    return Task(
        units=units, costs=costs, bytes=sizes, weights=sizes, limit=limit, limits_divergence=divergence, solver=solver
    )


def loop(of, truth):
    """A loop whose models measure the sum of `truth`, by unit and choice; so do groups."""

    class Trial:
        def __init__(self, selection):
            self.selection = selection

        def divergence(self):
            return self.selection.sum(truth)

    def marginals(trial, groups):
        return {
            name: sum(truth[int(layer)][trial.selection.choices[int(layer)]] for layer in layers)
            for name, layers in groups.items()
        }

    return Loop(of, Trial, marginals)


ERRORS = st.lists(st.floats(0.1, 10.0), min_size=2, max_size=8)
WRONG = st.lists(st.floats(0.05, 20.0), min_size=8, max_size=8)


@given(ERRORS, WRONG, st.floats(1e-4, 1.0), st.integers(1, 4))
def test_a_divergence_is_never_passed_whatever_the_predictions_are(errors, wrong, limit, count):
    of = task(errors, limit, divergence=True)
    truth = [[factor * cost for cost in own] for factor, own in zip(wrong, of.costs, strict=False)]
    run = loop(of, truth)
    try:
        best = run.run(count)
    except PlanError:
        assert sum(own[-1] for own in truth) > limit
        return
    assert best.selection.sum(truth) <= limit
    assert best.bytes <= min(own.bytes for own in run.rounds if own.holds)


@given(ERRORS, WRONG, st.floats(0.0, 1.0), st.integers(1, 4))
def test_a_size_is_never_passed_and_the_best_measured_round_is_returned(errors, wrong, share, count):
    limit = len(errors) * (BYTES[0] + share * (BYTES[-1] - BYTES[0]))
    of = task(errors, limit, divergence=False)
    truth = [[factor * cost for cost in own] for factor, own in zip(wrong, of.costs, strict=False)]
    run = loop(of, truth)
    best = run.run(count)
    assert all(own.bytes <= limit for own in run.rounds)
    assert best.measured == min(own.measured for own in run.rounds)


@pytest.mark.parametrize("solver", [allocate_greedily, allocate_exactly])
def test_corrections_of_a_kind_move_bits_to_it(solver):
    # Layers b cost twenty times what was predicted: the second round gives them more, and measures better.
    of = task([1.0] * 8, 8 * 4.0, divergence=False, solver=solver)
    truth = [[(20.0 if place % 2 else 1.0) * cost for cost in own] for place, own in enumerate(of.costs)]
    run = loop(of, truth)
    best = run.run(3)
    assert len(run.rounds) > 1
    assert best.measured < run.rounds[0].measured
    own = best.selection.choices
    assert sum(own[1::2]) > sum(own[0::2])


def test_a_selection_that_comes_again_ends_the_loop():
    of = task([1.0] * 4, 4 * 4.0, divergence=False)
    run = loop(of, of.costs)
    run.run(9)
    assert len(run.rounds) == 1


def test_networks_without_repetition_are_grouped_by_neighbours():
    units = [SimpleNamespace(name="".join(chr(97 + int(c)) for c in str(place))) for place in range(40)]
    groups = groups_of(units)
    assert len(groups) == 14  # runs of three
    assert [unit.name for own in groups.values() for unit in own] == [unit.name for unit in units]


def test_rounds_say_how_many_units_moved():
    of = task([1.0] * 8, 8 * 4.0, divergence=False)
    truth = [[(20.0 if place % 2 else 1.0) * cost for cost in own] for place, own in enumerate(of.costs)]
    run = loop(of, truth)
    run.run(2)
    turns = reported(run.rounds, 100, lambda size: size / 8)
    assert turns[0].moved == 0
    assert turns[1].moved > 0
    assert turns[0].bytes == run.rounds[0].bytes + 100
