"""How the files of a model in several are called: `m-00001-of-00003.gguf`. Source: llama.cpp, `llama_split_path`."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})")
#: Numbers of parts have five digits.
MOST_PARTS = 99_999


def part_of(whole: Path, number: int, count: int) -> Path:
    """Return the path of a part, counted from 0, of the model called `whole`.

    >>> part_of(Path("m.gguf"), 0, 3).name
    'm-00001-of-00003.gguf'
    """
    return whole.with_name(f"{whole.stem}-{number + 1:05}-of-{count:05}{whole.suffix}")


def whole_of(path: Path) -> Path:
    """Return the path of the model that a part is of, or `path` itself."""
    match = _NAME.fullmatch(path.stem)
    return path.with_name(f"{match[1]}{path.suffix}") if match else path


def beside(path: Path) -> list[Path]:
    """Return all parts that there are of the model that `path` is a part of, or `path` alone."""
    match = _NAME.fullmatch(path.stem)
    if not match:
        return [path]
    every = (part_of(whole_of(path), number, int(match[3])) for number in range(int(match[3])))
    return [part for part in every if part.is_file()]
