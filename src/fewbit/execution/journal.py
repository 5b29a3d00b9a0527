"""The journal of a run in OUT.partial: a step is a small file, there whole or not at all, on the disk before the next.

OUT.partial/model holds the output under construction, OUT.partial/journal the steps and the arrays they speak of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewbit.checkpoints.folder import to_disk
from fewbit.errors import CheckpointError
from fewbit.raw_arrays import NewRawArrays, RawArrays
from fewbit.whole_file import write_whole

#: Version of what the steps hold.
SCHEMA = 1
_FIRST = "run"


class Journal:
    """What a run has done, in steps; everything before the last step is on the disk."""

    def __init__(self, output: Path) -> None:
        output = output.resolve() if output.is_symlink() else output.absolute()
        #: What belongs to the run while it is not done.
        self.folder = output.with_name(f"{output.name}.partial")
        self.model = self.folder / "model"
        self._own = self.folder / "journal"
        self._lock: int | None = None
        self.steps: list[dict[str, Any]] = []

    @property
    def there(self) -> bool:
        """Whether there is something to resume."""
        return (self._own / _name(0)).is_file()

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Start anew, whatever was there."""
        with told(self.folder):
            self._take()
            for rest in (self._own, self.model):
                shutil.rmtree(rest, ignore_errors=True)
            self._own.mkdir()
            to_disk(self.folder)
            to_disk(self.folder.parent)
        self.steps = []
        self.add({"kind": _FIRST, "schema": SCHEMA, "identity": dict(identity)})

    def open(self) -> dict[str, Any]:
        """Read the steps of an earlier run; return what that one is identified by.

        Raises:
            CheckpointError: a journal that is damaged or of another version, or in use.

        """
        with told(self.folder):
            self._take()
        while (self._own / _name(len(self.steps))).is_file():
            self.steps.append(_read(self._own / _name(len(self.steps))))
        first = self.steps[0]
        if first.get("kind") != _FIRST or first.get("schema") != SCHEMA:
            raise CheckpointError(
                f"{self._own} is a journal of version {first.get('schema')}, this fewbit writes {SCHEMA}; remove "
                f"{self.folder}, or resume with the fewbit that began it"
            )
        identity: dict[str, Any] = first["identity"]
        return identity

    def add(self, step: Mapping[str, Any]) -> None:
        """Write a step down; when this returns it survives a power cut."""
        text = json.dumps(step, separators=(",", ":"))
        content = f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n".encode()
        with told(self.folder):
            to_disk(self._own)  # what the step speaks of is there before it
            write_whole(self._own / _name(len(self.steps)), content)
            to_disk(self._own)
        self.steps.append(json.loads(text))

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the steps of a kind, in order."""
        return [step for step in self.steps if step["kind"] == kind]

    def new_file(self, name: str) -> NewRawArrays:
        """Return a file for arrays that a step to come will speak of; one of that name was left by a run that ended."""
        with told(self.folder):
            return NewRawArrays(self._own / f"{name}.bin")

    def arrays(self, table: dict[str, Any]) -> RawArrays:
        """Return the arrays that a step speaks of."""
        return RawArrays.of_table(table, self._own)

    def forget(self, arrays: RawArrays) -> None:
        """Remove arrays that no step to come needs."""
        arrays.path.unlink(missing_ok=True)

    def end(self) -> None:
        """Remove all of it: the output has its name."""
        # The first step goes first: without it there is nothing to resume.
        (self._own / _name(0)).unlink(missing_ok=True)
        for rest in (self._own, self.model):
            shutil.rmtree(rest, ignore_errors=True)
        (self.folder / "lock").unlink(missing_ok=True)
        self.close()
        with contextlib.suppress(OSError):  # what else is in there is not ours
            self.folder.rmdir()

    def close(self) -> None:
        """Let others use it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take(self) -> None:
        """Make sure that no other process writes here."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            import fcntl
        except ImportError:  # Windows
            return
        self.close()
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise CheckpointError(
                f"another process writes {self.folder}; wait for it, or choose another output"
            ) from error


@contextmanager
def told(where: Path) -> Iterator[None]:
    """Turn an error of the file system into one that says what to do."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise CheckpointError(
            f"cannot write {where}: {why}; what is finished stays there, --resume goes on with it"
        ) from error


def _name(number: int) -> str:
    return f"{number:05}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        digest, _, text = path.read_text("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    text = text.removesuffix("\n")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is another; remove {path.parent.parent} and begin anew")
    step: dict[str, Any] = json.loads(text)
    return step
