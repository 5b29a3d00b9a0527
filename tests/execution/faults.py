"""Faults at chosen moments of what a run does to its files: it is killed there, or the system refuses.

`points` wraps all by which fewbit changes files while it streams; before and behind each call is a point, from 1 on.
"""

from __future__ import annotations

import errno
import os
import pathlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fewbit import raw_arrays
from fewbit.checkpoints import folder, safetensors_file
from fewbit.execution import journal

#: What writes, by where it is looked up. A kill comes before and after each.
_WRITES = [
    (safetensors_file, "write_at"), (safetensors_file, "create_empty"), (safetensors_file, "to_disk"),
    (folder, "to_disk"), (journal, "to_disk"), (journal, "write_whole"), (folder.NewFolder, "write"),
    (raw_arrays.NewRawArrays, "add"), (raw_arrays.NewRawArrays, "close"),
    (pathlib.Path, "rename"), (pathlib.Path, "replace"), (pathlib.Path, "mkdir"), (journal.shutil, "rmtree"),
]  # fmt: skip

Fault = Callable[[int], None]


@contextmanager
def points(fault: Fault, writes: list[tuple[Any, str]] = _WRITES) -> Iterator[list[str]]:
    """Call `fault` with its number before and after each call that changes files; yields what was called so far."""
    seen: list[str] = []
    before = [(where, name, getattr(where, name)) for where, name in writes]

    def wrapped(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(f"before {name}")
            fault(len(seen))
            result = own(*args, **kwargs)
            seen.append(f"after {name}")
            fault(len(seen))
            return result

        return call

    for where, name, own in before:
        setattr(where, name, wrapped(name, own))
    try:
        yield seen
    finally:
        for where, name, own in before:
            setattr(where, name, own)


def killing(point: int) -> Fault:
    """Return a fault that ends the process at a point as a power cut would, as far as a process can tell."""

    def fault(number: int) -> None:
        if number == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return fault


def refusing(point: int, code: int = errno.ENOSPC) -> Fault:
    """Return a fault by which the system refuses from a point on, until the end of the run."""

    def fault(number: int) -> None:
        if number >= point:
            raise OSError(code, os.strerror(code))

    return fault
