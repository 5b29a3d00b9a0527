"""How many threads a kernel compiled by numba is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: Work on fewer numbers is done sooner by one thread than shared out: torch's threads are waiting beside numba's.
_SHARED_FROM = 1 << 14


@contextmanager
def threads_for(numbers: int) -> Iterator[None]:
    """Run kernels in one thread while the block runs if they work on few numbers."""
    import numba

    threads = numba.get_num_threads()
    numba.set_num_threads(threads if numbers >= _SHARED_FROM else 1)
    try:
        yield
    finally:
        numba.set_num_threads(threads)
