"""The most memory that this process has held so far, as the system counts it: resident pages, without those of a GPU.

On Linux that is VmHWM of /proc/self/status. `ru_maxrss` stands in where there is no such line: a process that was
spawned begins with the figure of the one that spawned it. Source: proc_pid_status(5), getrusage(2).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_memory() -> int | None:
    """Return bytes, or `None` where the system does not say."""
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text("ascii", errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
