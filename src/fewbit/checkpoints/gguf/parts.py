"""A GGUF file, or several parts of one, being written: all parts appear or none, and the first, which is read, last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewbit.checkpoints.gguf.container import Container, Entry
from fewbit.checkpoints.gguf_parts import COUNT, NUMBER, TENSORS
from fewbit.errors import CheckpointError
from fewbit.part_names import MOST_PARTS, part_of


class Parts:
    """Containers side by side; `put` fills the tensors in any order."""

    def __init__(
        self, path: Path, architecture: str, values: Mapping[str, Any], parts: Sequence[Sequence[Entry]],
        *, overwrite: bool,
    ) -> None:  # fmt: skip
        if len(parts) > MOST_PARTS:
            raise CheckpointError(f"{len(parts)} parts are too many; at most {MOST_PARTS} have names")
        self._parts: list[Container] = []
        self._homes: dict[str, Container] = {}
        try:
            for number, entries in enumerate(parts):
                own, place = dict(values), path
                if len(parts) > 1:
                    said = {NUMBER: number, COUNT: len(parts), TENSORS: sum(map(len, parts))}
                    own, place = (own if number == 0 else {}) | said, part_of(path, number, len(parts))
                self._parts.append(Container(place, architecture, own, entries, overwrite=overwrite))
                self._homes |= {entry.name: self._parts[-1] for entry in entries}
        except BaseException:
            self.abort()
            raise

    def put(self, name: str, rows: Any) -> bytes:
        """Write the bytes of a tensor, uint8, and return their digest."""
        if name not in self._homes:
            raise CheckpointError(f"tensor {name} is not in the manifest, or came twice")
        return self._homes[name].put(name, rows)

    def close(self) -> Path:
        """Move the files to their names and return that of the first; every tensor must have come."""
        for part in self._parts:
            part.require_filled()
        moved: list[Path] = []
        try:
            for part in reversed(self._parts):
                moved.append(part.close())
        except BaseException:
            for path in moved:
                path.unlink(missing_ok=True)
            raise
        return moved[-1]

    def abort(self) -> None:
        """Remove what was written and not closed."""
        for part in self._parts:
            part.abort()


def divided(entries: Sequence[Entry], most: int | None) -> list[list[Entry]]:
    """Return the tensors in parts of at most `most` bytes, in their order; a larger one has a part of its own."""
    parts: list[list[Entry]] = [[]]
    size = 0
    for own in entries:
        if most is not None and parts[-1] and size + own.nbytes > most:
            parts.append([])
            size = 0
        parts[-1].append(own)
        size += own.nbytes
    return parts
