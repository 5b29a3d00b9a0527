"""Memory that a process holds without need: freed chunks of the allocator, and pages of files that can be read again.

Weights that safetensors maps count as memory of the process once they were read. Giving such pages back loses nothing
as long as no one wrote into them, which the kernel says page by page. Linux only; elsewhere nothing happens.
Source: madvise(2), proc_pid_pagemap(5), malloc_trim(3), mallopt(3).
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from fewbit.frontends.torch.forward_attribute import get_forward, set_forward

_PAGEMAP = Path("/proc/self/pagemap")
#: The number of an option of mallopt(3).
_MMAP_THRESHOLD = -3
#: Bits of a page in the page map: in memory, on the swap device, of a file or shared.
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


def trim() -> None:
    """Give the free memory of the C library's allocator back to the system."""
    give_back = getattr(_libc(), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


def map_large_blocks() -> None:
    """Have the C library map every block from 4 MiB on by itself from now on, so that freeing it gives it back.

    By itself it raises that limit to 32 MiB as blocks are freed, and what is smaller leaves holes in its heap.
    """
    set_option = getattr(_libc(), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, 4 << 20)


def give_back(tensors: Iterable[Tensor]) -> None:
    """Give back the pages of tensors that are mapped from a file and as they were there."""
    if not _PAGEMAP.exists():
        return
    with _PAGEMAP.open("rb") as pagemap:
        for tensor in tensors:
            if tensor.device.type == "cpu" and not tensor.is_meta:
                _give_back(tensor.data_ptr(), tensor.numel() * tensor.element_size(), pagemap)


@contextmanager
def read_by_turns(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Give back the pages of the weights of each of `modules` as soon as another one runs."""
    last: nn.Module | None = None

    def by_turns(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal last
        # Not behind the run: torch stops one that is repeated for gradients where it has all that it needs.
        if last is not None and last is not module:
            give_back(last.parameters())
        last = module
        return forward(*args, **kwargs)

    with ExitStack() as undo:
        for module in modules:
            undo.callback(set_forward, module, get_forward(module))
            module.forward = partial(by_turns, module, module.forward)
        yield


def _give_back(address: int, size: int, pagemap: Any) -> None:
    # Only pages that hold nothing else: what shares the first or last one may be in use.
    first, last = -(-address // mmap.PAGESIZE), (address + size) // mmap.PAGESIZE
    if last <= first:
        return
    pagemap.seek(first * 8)
    pages = np.frombuffer(pagemap.read((last - first) * 8), np.uint64)
    there = (pages & (_PRESENT | _SWAPPED)) != 0
    # Memory that belongs to no file, and a page that was written into, is nowhere else.
    if len(pages) == last - first and there.any() and bool((pages[there] & _OF_FILE != 0).all()):
        where, length = ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t((last - first) * mmap.PAGESIZE)
        _libc().madvise(where, length, mmap.MADV_DONTNEED)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
