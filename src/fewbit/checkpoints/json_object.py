"""JSON objects out of files that nobody vouches for: bounded in size and depth, every key once, else a clear error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewbit.errors import CheckpointError, FewbitError, NotYetError

#: Configurations take kilobytes; the index of the largest models some megabytes.
LARGEST = 64 << 20
#: How deep arrays and objects may nest; configurations nest three or four deep.
DEEPEST = 64
#: What a reader may take: so many times a file, and so many bytes beside.
TIMES, BESIDE = 16, 64 << 20
#: Bytes of memory that Python takes at most for what begins, or ends, with a character, and for each byte of the text.
_COSTS = {b"[": 88, b"{": 136, b":": 200, b",": 72}
_OF_A_BYTE = 4


def read_object(path: Path, *, error: type[FewbitError] = CheckpointError) -> dict[str, Any]:
    """Return the JSON object that the file at `path` holds.

    Raises `error` for anything else; the file's name is in the message.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise error(f"{path} has {size} bytes; more than {LARGEST} are not read as JSON")
        return parse_object(path.read_bytes())
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror})") from problem
    except CheckpointError as problem:
        raise error(f"{path} {problem}") from problem


def parse_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object in `content`.

    >>> parse_object(b'{"a": 1}')
    {'a': 1}

    Raises:
        CheckpointError: not UTF-8, not JSON, not an object, a key twice, or nested too deeply; names no file.

    """
    require_light(content)
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_every_key_once)
    except RecursionError as error:
        raise CheckpointError(f"is not read: its JSON nests deeper than {DEEPEST}") from error
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError, and numbers of thousands of digits
        raise CheckpointError(f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"does not hold a JSON object but a {type(value).__name__}")
    if _depth_exceeds(value, DEEPEST):
        raise CheckpointError(f"is not read: its JSON nests deeper than {DEEPEST}")
    return value


def require_light(content: bytes) -> None:
    """Raise `CheckpointError` for JSON that would take memory out of proportion; `[],` takes 30 times its bytes."""
    takes = _OF_A_BYTE * len(content) + sum(content.count(own) * cost for own, cost in _COSTS.items())
    if takes > TIMES * len(content) + BESIDE:
        raise CheckpointError(
            f"is not read: its {len(content)} bytes of JSON would take {takes} of memory, more than {TIMES} times as "
            f"many and {BESIDE}; is it the right file?"
        )


def require_idle(said: Mapping[str, Any], idle: Mapping[str, tuple[Any, ...]], where: str) -> None:
    """Raise `NotYetError` where a key of `idle` says anything else than what changes nothing."""
    for key, values in idle.items():
        if said.get(key) not in values:
            raise NotYetError(f"{where} has {key} = {said[key]!r:.80}, which this version does not read")


def read_flag(said: Mapping[str, Any], key: str, where: str, *, usual: bool) -> bool:
    """Return what a key says, `usual` where it is not there; raise `CheckpointError` unless that is true or false."""
    value = said.get(key, usual)
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {key} = {value!r:.40} is not true or false")
    return value


def _every_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; Python alone would keep the last of two equal keys, and other readers the first."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise CheckpointError(f"names {twice!r} twice; which of them counts is not said")
    return found


def _depth_exceeds(value: Any, deepest: int) -> bool:
    level = [value]
    for _ in range(deepest):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return any(isinstance(value, dict | list) for value in level)
