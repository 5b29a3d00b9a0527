"""The instruction sets of the processor at hand, named as Linux names them in /proc/cpuinfo."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def processor_flags() -> frozenset[str]:
    """Return what the first processor has; nothing where the system does not say it so."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return next((frozenset(words.split()) for name, _, words in lines if name.strip() == "flags"), frozenset())
