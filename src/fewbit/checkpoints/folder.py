"""An output folder that appears whole or not at all: written beside its final name, brought to the disk, then renamed.

What an interruption leaves unfinished is known here, so that whoever catches it can settle it (`settle_all`).
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from fewbit.errors import CheckpointError

#: What was begun and neither committed nor removed.
unfinished: dict[Path, Unfinished] = {}


class Unfinished(ABC):
    """Something under construction beside its name; `path` is where to write, `commit` moves it to `final`."""

    #: What it is, for errors.
    kind: ClassVar[str]

    def __init__(self, final: Path, *, overwrite: bool = False, place: Path | None = None) -> None:
        # A link to a model stays a link: what it leads to is replaced.
        self.final = Path(final).resolve() if Path(final).is_symlink() else Path(final).absolute()
        self.overwrite = overwrite
        self.require_free()
        #: Whether it stands at a place that someone else has chosen, and stays there on failure, to be gone on with.
        self.stays = place is not None
        self.path = place or self.final.with_name(f".{self.final.name}.{secrets.token_hex(4)}.partial")
        # Known before it is there: an interruption may come between any two lines.
        unfinished[self.path] = self
        try:
            self.final.parent.mkdir(parents=True, exist_ok=True)
            self.begin()
        except OSError as error:
            del unfinished[self.path]
            raise CheckpointError(f"cannot create a {self.kind} beside {self.final}: {error.strerror}") from error

    @abstractmethod
    def require_free(self) -> None:
        """Raise `CheckpointError` unless it can be put at `final`."""

    @abstractmethod
    def begin(self) -> None:
        """Make what stands at `path` first, for nobody else to read."""

    @abstractmethod
    def to_final(self) -> None:
        """Bring what was written to the disk, with the usual permissions, and move it to `final`."""

    @abstractmethod
    def discard(self) -> None:
        """Remove what was written and not moved."""

    def commit(self) -> Path:
        """Move it to its final name and return that."""
        self.require_free()
        try:
            self.to_final()
        finally:
            self.remove()
        to_disk(self.final.parent)
        return self.final

    def remove(self) -> None:
        """Remove what was written and not committed."""
        self.discard()
        unfinished.pop(self.path, None)


class NewFolder(Unfinished):
    """A folder under construction; what it replaces goes last, after the move succeeded."""

    kind = "folder"

    @property
    def _retired(self) -> Path:
        return self.path.with_suffix(".replaced")

    def require_free(self) -> None:
        """Raise `CheckpointError` unless a folder can be put at `final`."""
        require_free(self.final, overwrite=self.overwrite)

    def begin(self) -> None:
        """Make the folder; one that stays may be there, and its end may have been interrupted."""
        if self.stays:
            self.discard()
        self.path.mkdir(mode=0o700, exist_ok=self.stays)

    def write(self, name: str, content: bytes) -> None:
        """Write a file of plain name; a name that leaves the folder is refused."""
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"file name {name!r} is not a plain name; nothing outside the folder is written")
        (self.path / name).write_bytes(content)

    def to_final(self) -> None:
        """Move the folder to its name, what stood there aside."""
        self.path.chmod(0o777 & ~umask())
        for file in (*self.path.iterdir(), self.path):
            to_disk(file)
        if self.final.exists():
            self.final.rename(self._retired)
        self.path.rename(self.final)

    def discard(self) -> None:
        """Remove the folder; what was to be replaced and was not goes back to its name."""
        if self._retired.exists() and not self.final.exists():
            self._retired.rename(self.final)
        for rest in (self._retired,) if self.stays else (self._retired, self.path):
            shutil.rmtree(rest, ignore_errors=True)


def settle_all() -> None:
    """Remove everything that was begun and not committed; call it where nothing can interrupt."""
    for own in list(unfinished.values()):
        own.remove()


def require_free(final: Path, *, overwrite: bool) -> None:
    """Raise `CheckpointError` unless a folder can be put at `final`: nothing is there, or a model to be replaced."""
    if not final.exists():
        return
    if not overwrite:
        raise CheckpointError(f"{final} exists; choose another name or pass overwrite (--overwrite)")
    # Only what fewbit or a Hugging Face tool wrote is ever replaced: a mistyped name must not cost a home folder.
    if not final.is_dir() or (any(final.iterdir()) and not (final / "config.json").is_file()):
        raise CheckpointError(f"{final} is not a model folder and is not overwritten; remove it yourself")


def require_room(final: Path, nbytes: int) -> None:
    """Raise `CheckpointError` where a folder of `nbytes` bytes cannot be made at `final`; ask before long work."""
    place = final.absolute().parent
    while not place.exists():
        place = place.parent
    try:
        # Permissions do not tell: a file system may be read-only, or let nobody make folders.
        Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=place)).rmdir()
    except OSError as error:
        raise CheckpointError(f"cannot write to {place}: {error.strerror}; choose another output") from error
    free = shutil.disk_usage(place).free
    if free < nbytes:
        raise CheckpointError(
            f"{place} has {free:,} bytes free and the model takes {nbytes:,}; make room, or choose another output"
        )


def write_at(path: Path, start: int, content: memoryview) -> None:
    """Write bytes into a file at `start`; an interruption between two of these lines leaves no file object open."""
    descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
    try:
        os.lseek(descriptor, start, os.SEEK_SET)
        while content:
            content = content[os.write(descriptor, content) :]
    finally:
        os.close(descriptor)


def to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk: after a power cut a name must not lie."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folder, and brings renames to the disk by itself
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def umask() -> int:
    """Return the permissions that new files are not given."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
