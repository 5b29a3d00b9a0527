"""How many threads a kernel compiled by numba is worth; those of torch are as many afterwards as before.

Both may share one OpenMP, where numba sets the number for all who follow: torch.set_num_threads(1) would be undone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: Work on fewer numbers is done sooner by one thread than shared out: torch's threads are waiting beside numba's.
_SHARED_FROM = 1 << 14


@contextmanager
def threads_for(numbers: int) -> Iterator[None]:
    """Run kernels while the block runs in no more threads than torch has, in one if they work on few numbers."""
    import numba

    torch = sys.modules.get("torch")
    others = torch.get_num_threads() if torch else None
    threads = numba.get_num_threads()  # the first time it sets the number for all, so torch was asked before
    numba.set_num_threads(min(threads, others or threads) if numbers >= _SHARED_FROM else 1)
    try:
        yield
    finally:
        numba.set_num_threads(threads)
        if torch and torch.get_num_threads() != others:
            torch.set_num_threads(others)
