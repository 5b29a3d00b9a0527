"""Regular expressions for names of layers out of files that nobody vouches for: matching one takes bounded time.

Backtracking tries every way in which repeats share a name: k of them in a row C(n + k, k) ways for n characters, one
inside of another 2^n. What could take too many is refused before it is tried.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import comb, inf
from time import process_time
from typing import Any

from fewbit.errors import FewbitError

#: Characters of an expression; those of layers take some dozens.
LONGEST = 8192
#: Ways that are tried for one name, in 0.3 s at most: 4 repeats `.*` in a row have 4,600,000 over 100 characters.
MOST_WAYS = 10_000_000
#: Below it nobody looks at the clock. A match of microseconds is no matter; all slow ones together may take so long.
_FEW_WAYS, _SLOW, MOST_SECONDS = 10_000, 0.0001, 0.5
#: Repeats of which it is not worth counting how often.
_FEW_TIMES = 8
#: The standard library's own parser of expressions.
_PARSER: Any = importlib.import_module("re._parser")
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT")
#: Where the parts of an item are, by the word of that parser.
_CHOICES: dict[str, Callable[[Any], Any]] = {
    "BRANCH": lambda given: given[1],
    "GROUPREF_EXISTS": lambda given: [given[1], given[2] or []],
}
_INSIDE: dict[str, Callable[[Any], Any]] = {
    "SUBPATTERN": lambda given: given[-1],
    "ASSERT": lambda given: given[1],
    "ASSERT_NOT": lambda given: given[1],
    "POSSESSIVE_REPEAT": lambda given: given[2],
    "ATOMIC_GROUP": lambda given: given,
}


@dataclass(frozen=True, slots=True)
class _Ways:
    """In how many ways something may match from one place: `factor` times those of `stars` repeats in a row."""

    stars: int = 0
    factor: float = 1.0

    def of(self, length: int) -> float:
        """Return the number for a name of `length` characters."""
        return self.factor * comb(length + self.stars, self.stars)

    def then(self, other: _Ways) -> _Ways:
        """Return those of both, one behind the other."""
        return _Ways(self.stars + other.stars, self.factor * other.factor)


@dataclass(slots=True)
class NamePattern:
    """A regular expression, as Python's `re` has them, whose matching ends."""

    text: str
    #: What a refusal is raised as.
    error: type[FewbitError]
    _compiled: re.Pattern[str]
    _ways: _Ways
    _seconds: float = field(default=0.0)

    @classmethod
    def of(cls, text: str, what: str, error: type[FewbitError]) -> NamePattern:
        r"""Return the pattern that `text` spells; `what` is the subject of errors, which are of type `error`.

        >>> from fewbit.errors import RecipeError
        >>> NamePattern.of(r".*\.mlp\..*", "it", RecipeError).fullmatch("layers.0.mlp.up")
        True
        >>> NamePattern.of("(a+)+b", "it", RecipeError)
        Traceback (most recent call last):
        fewbit.errors.RecipeError: it repeats what has a repeat or a choice in it ... repeat once, or as in (\d++\.)+

        Raises `error` for what is no regular expression, is too long, or could take too long.
        """
        if len(text) > LONGEST:
            raise error(f"{what} has {len(text)} characters; regular expressions of more than {LONGEST} are not read")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of sets that a later Python may read otherwise
                compiled = re.compile(text)
                ways = _in_a_row(_PARSER.parse(text))
        except (re.error, OverflowError, RecursionError) as problem:
            raise error(f"{what} is not a regular expression: {problem}") from problem
        if ways.factor == inf:
            raise error(
                f"{what} repeats what has a repeat or a choice in it ({text!r:.70}), which can take time without end; "
                r"repeat once, or as in (\d++\.)+"
            )
        return cls(text, error, compiled, ways)

    def fullmatch(self, name: str) -> bool:
        """Whether the whole of `name` matches."""
        return self._timed(self._compiled.fullmatch, name)

    def match(self, name: str) -> bool:
        """Whether the beginning of `name` matches."""
        return self._timed(self._compiled.match, name)

    def search(self, name: str) -> bool:
        """Whether any part of `name` matches."""
        return self._timed(self._compiled.search, name, len(name) + 1)

    def _timed(self, matching: Any, name: str, places: int = 1) -> bool:
        ways = places * self._ways.of(len(name))
        if ways < _FEW_WAYS:
            return matching(name) is not None
        if ways > MOST_WAYS:
            raise self._too_long(f"more than {MOST_WAYS:,} ways to match {name!r:.80} of {len(name)} characters")
        started = process_time()
        found = matching(name) is not None
        took = process_time() - started
        self._seconds += took if took > _SLOW else 0.0
        if self._seconds > MOST_SECONDS:
            raise self._too_long(f"taken {self._seconds:.2f} s, up to {name!r:.80}")
        return found

    def _too_long(self, fact: str) -> FewbitError:
        return self.error(f"the regular expression {self.text!r:.80} has {fact}; use fewer repeats such as .*")


def _in_a_row(items: Sequence[tuple[Any, Any]]) -> _Ways:
    """Return the ways of items that follow one another."""
    ways = _Ways()
    for kind, given in items:
        ways = ways.then(_of_item(repr(kind), given))
    return ways


def _of_item(kind: str, given: Any) -> _Ways:
    if kind in _REPEATS:
        return _of_repeat(*given)
    if kind in _CHOICES:
        return _of_choice(_CHOICES[kind](given))
    # What is never entered again, as a possessive repeat is not, takes work, though it matches in one way.
    return _in_a_row(_INSIDE[kind](given)) if kind in _INSIDE else _Ways()


def _of_repeat(least: int, most: int, body: Any) -> _Ways:
    own, times = _in_a_row(body), int(most) - int(least) + 1
    if int(most) > _FEW_TIMES and body.getwidth()[0] == 0:  # of nothing: the name does not end it
        return _Ways(0, inf)
    if own == _Ways():
        if times == 1:
            return own
        return _Ways(0, times) if times <= _FEW_TIMES else _Ways(1)
    if int(most) > _FEW_TIMES:
        return _Ways(0, inf)
    return _Ways(own.stars * int(most), times * own.factor ** int(most))


def _of_choice(choices: Sequence[Sequence[tuple[Any, Any]]]) -> _Ways:
    """Return the ways of alternatives, of which only one can go on where each begins with another character."""
    every = [_in_a_row(own) for own in choices]
    firsts = {chr(own[0][1]).casefold() for own in choices if len(own) and repr(own[0][0]) == "LITERAL"}
    alone = len(firsts) == len(choices)
    factors = [own.factor for own in every]
    return _Ways(max(own.stars for own in every), max(factors) if alone else sum(factors))
