"""Algorithms by name, and nearest rounding as one of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fewbit.algorithms import ALGORITHMS, LATER, parse_algorithm, solve
from fewbit.algorithms.nearest import Nearest
from fewbit.algorithms.solution import Solution
from fewbit.catalogue import lookup, with_options
from fewbit.errors import NotYetError, RecipeError
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme


@dataclass(frozen=True)
class Damped:
    """Stands for an algorithm with options."""

    damping: float = 0.01
    order: str = "given"


@dataclass(frozen=True)
class Recorder:
    """Stands for an algorithm, and remembers what it was given."""

    calls: list[Any]

    def __call__(self, *given):
        self.calls.append(given)
        return Solution("the result")


def weight() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_word_in_the_catalogue_is_the_name(name):
    algorithm = parse_algorithm(name)
    assert algorithm.name == name
    assert isinstance(algorithm, lookup(ALGORITHMS, name, what="algorithm"))
    assert parse_algorithm({"name": name}) == algorithm


def test_nearest_rounding_needs_no_calibration():
    assert Nearest().statistics == ()


@pytest.mark.parametrize("text", ["int4 g16", "int4 asym g16", "e4m3 channel"])
def test_nearest_rounding_is_quantize_on_every_framework(text, xp):
    solved = solve(xp.from_numpy(weight()), parse_scheme(text), "nearest")
    expected = quantize(weight(), parse_scheme(text))
    np.testing.assert_array_equal(xp.to_numpy(solved.codes), expected.codes, strict=True)
    np.testing.assert_array_equal(xp.to_numpy(solved.dequantize()), expected.dequantize(), strict=True)


def test_solve_hands_weight_statistics_and_scheme_to_the_algorithm():
    recorder, scheme, given = Recorder([]), parse_scheme("int4"), weight()
    assert solve(given, scheme, recorder, statistics={"second moment": 1}) == "the result"
    [(got_weight, got_statistics, got_scheme)] = recorder.calls
    assert got_weight is given
    assert (got_statistics, got_scheme) == ({"second moment": 1}, scheme)


def test_options_of_a_table_reach_the_algorithm():
    options = {"damping": 0.5}
    assert with_options(Damped, options, "algorithm 'damped'") == Damped(damping=0.5)


def test_parsing_leaves_the_table_as_it_was():
    table = {"name": "nearest"}
    parse_algorithm(table)
    assert table == {"name": "nearest"}


def test_an_unknown_algorithm_is_refused_with_the_closest_name():
    with pytest.raises(RecipeError, match=r"^unknown algorithm 'neerest'; did you mean 'nearest'\? known: .*nearest"):
        parse_algorithm("neerest")


def test_an_unknown_option_is_refused_with_the_known_ones():
    message = r"^unknown option of algorithm 'damped': 'dampening'; did you mean 'damping'\? known: damping, order$"
    with pytest.raises(RecipeError, match=message):
        with_options(Damped, {"dampening": 0.5}, "algorithm 'damped'")
    with pytest.raises(RecipeError, match=r"^unknown option of algorithm 'nearest': 'order'; "):
        parse_algorithm({"name": "nearest", "order": "given"})


@pytest.mark.parametrize("name", LATER)
def test_an_algorithm_of_a_later_version_says_so_and_what_there_is(name):
    with pytest.raises(NotYetError, match=rf"^algorithm '{name}' is not in this version; use one of: nearest"):
        parse_algorithm(name)
