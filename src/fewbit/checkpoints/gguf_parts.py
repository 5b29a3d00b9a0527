"""A model in several GGUF files, as llama.cpp splits one: the first says everything but which tensors the others hold.

`m-00001-of-00003.gguf`; each has `split.no`, from 0 on, `split.count`, and `split.tensors.count` of all together.
Source: llama.cpp, tools/gguf-split and src/llama-model-loader.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fewbit.checkpoints.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from fewbit.checkpoints.own_files import require_own
from fewbit.errors import CheckpointError
from fewbit.part_names import MOST_PARTS, part_of, whole_of

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"


def files_of(path: Path, header: GgufHeader) -> list[Path]:
    """Return the files of the model whose first one is at `path`."""
    return [path, *(part for part, _ in header.others)]


def read_gguf(path: Path) -> GgufHeader:
    """Return the header of the model at `path`: of a file, or of the first of several with the tensors of all.

    Raises:
        CheckpointError: no such file, one that does not hold what it says, or parts that do not belong together.

    """
    first = read_gguf_header(path)
    count = first.values.get(COUNT, 1)
    if type(count) is not int or not 0 <= count <= MOST_PARTS:
        raise CheckpointError(f"{path} says it is one of {count!r:.40} parts ({COUNT})")
    if count <= 1:
        return first
    number, whole = first.values.get(NUMBER), whole_of(path)
    if number != 0:
        raise CheckpointError(f"{path} is not the first of {count} parts ({NUMBER} = {number!r:.40}); give that one")
    if path.name != part_of(whole, 0, count).name:
        raise CheckpointError(
            f"{path} is the first of {count} parts, and by its name the others are not found; call it "
            f"{part_of(whole, 0, count).name}, and them likewise"
        )
    return _joined(path, first, [part_of(whole, number, count) for number in range(1, count)])


def place_of(path: Path, header: GgufHeader, tensor: GgufTensor) -> tuple[Path, int]:
    """Return the file in which a tensor of the model at `path` lies, and where it begins there."""
    file, start = (path, header.data_start) if tensor.part == 0 else header.others[tensor.part - 1]
    return file, start + tensor.offset


def _joined(path: Path, first: GgufHeader, others: list[Path]) -> GgufHeader:
    """Return the header with the tensors of `others` too."""
    count, homes = len(others) + 1, {own.name: path for own in first.tensors}
    tensors, places = list(first.tensors), []
    for number, part in enumerate(others, 1):
        if not part.is_file():
            raise CheckpointError(
                f"{path} is the first of {count} parts, and {part.name} is not there; is the download complete?"
            )
        require_own(part)
        header = read_gguf_header(part)
        said = header.values.get(NUMBER), header.values.get(COUNT)
        if said != (number, count):
            raise CheckpointError(
                f"{part} says it is part {said[0]!r:.40} of {said[1]!r:.40}, counted from 0, and by its name it is "
                f"{number} of {count}; it belongs to another model"
            )
        for own in header.tensors:
            if own.name in homes:
                home = homes[own.name].name
                raise CheckpointError(f"tensor {own.name} is in {home} and in {part}; which counts is not said")
            homes[own.name] = part
            tensors.append(replace(own, part=number))
        places.append((part, header.data_start))
    wanted = first.values.get(TENSORS)
    if wanted != len(tensors):
        raise CheckpointError(
            f"{path} says that its parts hold {wanted!r:.40} tensors, and they hold {len(tensors)}; "
            "they are not of one model"
        )
    return replace(first, tensors=tuple(tensors), others=tuple(places))
