"""The SHA-256 of every file of an output, at the end of its report.json, and whether the files still have it.

report.json is listed too, by its text as it is without the list: {"files": {name: {"sha256": hex, "bytes": n}}}.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.errors import CheckpointError
from fewbit.part_names import whole_of
from fewbit.whole_file import write_whole

REPORT = "report.json"
_BEGIN, _END = ',\n  "files": ', "\n}\n"
_LARGEST = 1 << 28


@dataclass(frozen=True, slots=True)
class Verified:
    """Files that are as they were written."""

    path: Path
    files: int
    nbytes: int

    def __str__(self) -> str:
        return f"{self.path}: {self.files} files, {self.nbytes:,} bytes, as they were written"


def hashed(report: bytes, name: str, files: Iterable[Path]) -> bytes:
    """Return the text of a report.json called `name` with the hashes of `files` and of itself behind the rest."""
    text = report.decode()
    assert text.endswith(_END)
    told = {path.name: _told(path) for path in sorted(files)}
    told[name] = {"sha256": hashlib.sha256(report).hexdigest(), "bytes": len(report)}
    lines = json.dumps(told, indent=2).replace("\n", "\n  ")
    return f"{text.removesuffix(_END)}{_BEGIN}{lines}{_END}".encode()


def write_reports(reports: Mapping[str, bytes], whole: Path, files: Iterable[Path]) -> None:
    """Write the reports of an output that is no folder beside it; `files` are those that it is made of."""
    every = list(files)
    for name in sorted(reports, key=lambda name: name == REPORT):  # that which lists the others last
        path = whole.with_name(f"{whole.stem}.{name}")
        write_whole(path, hashed(reports[name], path.name, every) if name == REPORT else reports[name])
        every.append(path)


def verify(path: str | Path) -> Verified:
    """Check every file of an output against its report.

    Args:
        path: a folder, or a `.gguf` or `.onnx` file with its report beside it.

    Raises:
        CheckpointError: files that changed, are missing, or were not there; no report, or one without hashes.

    """
    path = Path(path)
    if path.is_dir():
        folder, name = path, REPORT
        there = {str(own.relative_to(folder)) for own in path.rglob("*") if not own.is_dir()}
    elif path.is_file():
        folder, name, there = path.parent, f"{whole_of(path).stem}.{REPORT}", None
    else:
        raise CheckpointError(f"no {str(path)!r}: give a folder or a file that fewbit wrote")
    report = _read(folder / name, path)
    told = _list_of(report, folder / name)
    found = [text for file, own in told.items() if (text := _problem(folder, file, own, report, name))]
    found += [f"{file} was not written with it" for file in sorted((there or set()) - told.keys())]
    if found:
        raise CheckpointError(f"{path} is not as it was written: {'; '.join(found)}")
    return Verified(path, len(told), sum(own["bytes"] for own in told.values()))


def _problem(folder: Path, file: str, own: Mapping[str, Any], report: bytes, name: str) -> str | None:
    if file == name:
        base = f"{report.decode().rpartition(_BEGIN)[0]}{_END}".encode()
        now = {"sha256": hashlib.sha256(base).hexdigest(), "bytes": len(base)}
    elif not (folder / file).is_file():
        return f"{file} is missing"
    else:
        now = _told(folder / file)
    if now["bytes"] != own["bytes"]:
        return f"{file} has {now['bytes']:,} bytes, {own['bytes']:,} were written"
    return None if now["sha256"] == own["sha256"] else f"{file} has changed"


def _told(path: Path) -> dict[str, Any]:
    found, size = hashlib.sha256(), 0
    try:
        # As in `write_at`: an interruption between two of these lines leaves no file object open.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            while piece := os.read(descriptor, 1 << 20):
                found.update(piece)
                size += len(piece)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return {"sha256": found.hexdigest(), "bytes": size}


def _read(report: Path, path: Path) -> bytes:
    try:
        with report.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be verified: no {report.name} that can be read beside it") from error
    if len(content) > _LARGEST:
        raise CheckpointError(f"{report} has more than {_LARGEST} bytes; it is no report")
    return content


def _list_of(report: bytes, path: Path) -> dict[str, dict[str, Any]]:
    """Return the list of a report, which has to be one of plain names."""
    try:
        table = json.loads(report.decode())
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    told: Any = table.get("files") if isinstance(table, dict) else None
    if told is None:
        raise CheckpointError(f"{path} lists no hashes of files; it was written by a fewbit before they were listed")
    whole = isinstance(told, dict) and all(
        Path(name).name == name and isinstance(own, dict) and type(own.get("bytes")) is int and "sha256" in own
        for name, own in told.items()
    )
    if not whole:
        raise CheckpointError(f"{path} is damaged: its list of files is none")
    found: dict[str, dict[str, Any]] = told
    return found
