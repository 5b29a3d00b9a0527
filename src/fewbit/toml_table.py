"""TOML tables out of texts that nobody vouches for: bounded in size, depth and numbers, else a clear error."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from fewbit.errors import RecipeError

#: Characters of a text; a rule of a recipe takes about a hundred.
LARGEST = 1 << 20
_MOST_PARTS = 32
#: Dots, brackets and braces outside of texts: tomllib takes up to a kilobyte for each.
_MOST_TABLES = 50_000
#: What TOML is made of, as far as it takes to tell a dotted key from a text; one that is not closed ends the text.
_TOKENS = re.compile(
    r'''(?P<comment>\#[^\n]*+)|(?P<text>"""(?:[^\\]|\\.)*?(?:"""|\Z)|\'\'\'.*?(?:\'\'\'|\Z))
    |(?P<part>"(?:[^"\\\n]|\\.)*+"?|\'[^\'\n]*+\'?|[A-Za-z0-9_-]++)|(?P<dot>\.)|(?P<space>[ \t]++)|(?P<other>.)''',
    re.DOTALL | re.VERBOSE,
)


def parse_table(text: str, where: str) -> dict[str, Any]:
    """Return the table that `text` spells; `where` names it in errors.

    Raises:
        RecipeError: not TOML, or TOML that takes unreasonable time or memory to read.

    """
    if len(text) > LARGEST:
        raise RecipeError(f"{where} has more than {LARGEST} characters, which no table needs; is it the right file?")
    _check_keys_are_short(text, where)
    try:
        table = tomllib.loads(text)
    except RecursionError as error:
        raise RecipeError(f"{where} is not read: its arrays or tables nest too deeply") from error
    except ValueError as error:  # TOMLDecodeError, and whole numbers of thousands of digits
        raise RecipeError(f"{where} is not valid TOML: {error}") from error
    _check_whole_numbers(table, where)
    return table


def _check_keys_are_short(text: str, where: str) -> None:
    """Raise for a key of many dotted parts: tomllib takes memory by their square, all of it for 200 kB of `a.a.a`."""
    parts, dotted, tables = 0, False, 0
    for token in _TOKENS.finditer(text):
        kind = token.lastgroup
        tables += token[0] in ".[{"
        if tables > _MOST_TABLES:
            raise RecipeError(f"{where} is not read: it has more than {_MOST_TABLES} tables, arrays and dots")
        if kind == "part":
            parts, dotted = parts + 1 if dotted else 1, False
            if parts > _MOST_PARTS:
                line = text.count("\n", 0, token.start()) + 1
                raise RecipeError(f"{where} is not read: line {line} has a key of more than {_MOST_PARTS} dotted parts")
        elif kind == "dot":
            dotted = parts > 0
        elif kind != "space":
            parts, dotted = 0, False


def _check_whole_numbers(value: Any, where: str) -> None:
    """Raise for whole numbers of more than 64 bits, which TOML does not have; Python cannot even print the longest."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_whole_numbers(inner, f"{where}: {key!r:.40}")
    elif isinstance(value, list):
        for inner in value:
            _check_whole_numbers(inner, where)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RecipeError(f"{where} is a whole number of {value.bit_length()} bits; TOML has those of 64 bits")
