"""One reader, put to many inputs: each in a folder in memory, under limits of memory and time; crashes are kept.

A crash is what ends in anything but an error of fewbit, takes more than 16 times the input and 64 MiB, or takes a
second of the processor. Of those that end at one line, one file is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import resource
import shutil
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framed import unframed
from readers import READERS

import fewbit
from fewbit.errors import FewbitError

#: What a reader may take: so many times the input, and so many bytes beside.
TIMES, BESIDE = 16, 64 << 20
#: Seconds of the processor.
SLOWEST = 1.0
_WORD = re.compile(r"'[^']*'?|\"[^\"]*\"?|tensor \S+|\[.*?\]|/\S+|-?\d+|[^ -~]+")
_PACKAGE = Path(fewbit.__file__).parent
_PAGE = resource.getpagesize()
_MEMORY = Path("/dev/shm")


@dataclass(slots=True)
class Executions:
    """A reader, and what became of what it was given."""

    name: str
    #: Where inputs go that crash.
    kept: Path
    limited: bool = True
    count: int = 0
    read: int = 0
    refused: int = 0
    #: Refused ones by error, without names and numbers.
    reasons: Counter[str] = field(default_factory=Counter)
    #: By the line where each ended.
    crashes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    #: What the last refusal said.
    said: str = ""
    _read: Any = None
    _folder: Path = Path()
    _there: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        warnings.simplefilter("ignore")
        place = _MEMORY if _MEMORY.is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="fewbit-fuzz-", dir=place))

    def prepare(self, seeds: Sequence[bytes]) -> None:
        """Import what the reader needs, and read its seeds without limits: what they import is there then."""
        self._read = READERS[self.name].made()
        for seed in seeds:
            self._given(seed)
            with contextlib.suppress(FewbitError):
                self._read(self._folder)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, content: bytes) -> str:
        """Give the reader one input and return how it ended: `read`, `refused`, or where it crashed."""
        self._given(content)
        self.count += 1
        started = time.process_time()
        if self.limited:
            _limit(TIMES * len(content) + BESIDE)
        try:
            self._read(self._folder)
            ended = "read"
        except FewbitError as error:
            ended, self.said = "refused", str(error)
            self.reasons[" ".join(_WORD.sub("#", str(error)).split()[:16])] += 1
        except MemoryError:
            ended = "more memory than it may take"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            ended = _place_of(error)
        finally:
            if self.limited:
                _limit(None)
        took = time.process_time() - started
        self.slowest = max(self.slowest, took)
        # Of large files a second for each 256 KiB: what takes so long for a small one is no reader.
        if took > SLOWEST * max(1.0, len(content) / (256 << 10)):
            ended = f"slow: more than {SLOWEST} s"
        self._count(ended, content)
        return ended

    def _given(self, content: bytes) -> None:
        files = unframed(content, READERS[self.name].file)
        for name in self._there - files.keys():
            (self._folder / name).unlink()
        for name, own in files.items():
            (self._folder / name).write_bytes(own)
        self._there = frozenset(files)

    def _count(self, ended: str, content: bytes) -> None:
        if ended in ("read", "refused"):
            self.read += ended == "read"
            self.refused += ended == "refused"
            return
        self.crashes[ended] += 1
        if self.crashes[ended] == 1:
            self.kept.mkdir(parents=True, exist_ok=True)
            word = hashlib.sha256(content).hexdigest()[:10]
            (self.kept / f"crash-{word}").write_bytes(content)
            (self.kept / f"crash-{word}.txt").write_text(ended + "\n", encoding="utf-8", errors="replace")


def _limit(extra: int | None) -> None:
    """Let this process take `extra` bytes more than it has, or as much as it wants."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if extra is None:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        return
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  # a Path takes longer than the rest
        pages = int(file.read().split(maxsplit=1)[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * _PAGE + extra, hard))


def _place_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [own for own in frames if Path(own.filename).is_relative_to(_PACKAGE)]
    last = (ours or frames or [None])[-1]
    where = f"{Path(last.filename).name}:{last.name}:{last.line}" if last else "nowhere"
    return f"{type(error).__name__} at {where}"
