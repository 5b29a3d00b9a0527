"""Which safetensors files make up a model folder: by its index where it has one, checked against their headers."""

from __future__ import annotations

import re
from pathlib import Path

from fewbit.checkpoints.json_object import read_object
from fewbit.checkpoints.own_files import require_own
from fewbit.checkpoints.safetensors_header import read_header
from fewbit.errors import CheckpointError

ONE_FILE = "model.safetensors"
INDEX = f"{ONE_FILE}.index.json"
#: Endings of files that Python's pickle writes, or may have written; reading such a file can run code.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def files_of(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder.

    Raises:
        CheckpointError: no such files, or an index that does not say what they hold.

    """
    index = folder / INDEX
    if index.is_file():
        placed = _read_index(index)
        files = [folder / name for name in sorted(set(placed.values()))]
        if (folder / ONE_FILE).is_file() and folder / ONE_FILE not in files:
            raise CheckpointError(
                f"{folder} holds both {ONE_FILE} and {INDEX}, which names other files; "
                "readers disagree on which counts: remove the stale one"
            )
    elif (folder / ONE_FILE).is_file():
        require_own(folder / ONE_FILE)
        return [folder / ONE_FILE]
    else:
        placed = None
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(without_weights(folder))
    for file in files:
        require_own(file)
    _require_each_once(files, placed)
    return files


def without_weights(folder: Path) -> str:
    """Return the message for a folder without safetensors files: what there is instead, and what to do."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return (
            f"{folder} holds no .safetensors file but {pickles[0]}: reading pickled weights can run code, so they "
            "are not read; where you trust them, load them with transformers and save_pretrained the model"
        )
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return f"{folder} holds no .safetensors file but {gguf[0]}; give that file as the model"
    return f"{folder} holds no .safetensors file; is the download complete?"


def _read_index(index: Path) -> dict[str, str]:
    """Return which tensor lies in which file."""
    require_own(index)
    placed = read_object(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{index} is not a safetensors index: its weight_map names no tensor")
    for tensor, name in placed.items():
        # A plain name: no separator of any system, nothing hidden, nothing above.
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.\-]*\.safetensors", name):
            raise CheckpointError(
                f"{index} puts {tensor!r:.80} into the file {name!r:.80}; only plain .safetensors names are read"
            )
        if not _is_file(index.parent / name):
            raise CheckpointError(f"{index} names {name:.80}, which is not there; is the download complete?")
    return placed


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is longer than the system takes
        return False


def _require_each_once(files: list[Path], placed: dict[str, str] | None) -> None:
    """Raise unless every tensor lies in one file only, and in the one where the index has `placed` it."""
    homes: dict[str, Path] = {}
    for file in files:
        for entry in read_header(file).entries:
            name = entry.tensor.name
            if name in homes:
                raise CheckpointError(f"tensor {name} is in {homes[name].name} and in {file}; which counts is not said")
            homes[name] = file
            if placed is not None and placed.get(name) != file.name:
                there = f"says {placed[name]}" if name in placed else "does not name it"
                raise CheckpointError(f"{file} holds tensor {name}, but the index {there}; make the index anew")
    absent = [name for name in placed or () if name not in homes]
    if absent and placed:
        raise CheckpointError(
            f"the index puts tensor {absent[0]!r:.80} into {placed[absent[0]]}, which does not hold it "
            f"({len(absent)} such); is the download complete?"
        )
