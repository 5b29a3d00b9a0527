"""Whether the stack on which the main thread hears signals is there: without it the next one kills the process."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


class _Stack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def is_there() -> bool:
    """Return whether the memory of the stack is mapped; without one, and elsewhere than on Linux, it is not needed."""
    if sys.platform != "linux":
        return True
    own = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(own))
    if not own.start:
        return True
    ranges = (line.split(maxsplit=1)[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(first, 16) <= own.start < int(last, 16) for first, last in ranges)
