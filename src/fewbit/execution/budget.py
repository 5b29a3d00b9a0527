"""What a streamed run will take, told before its work: the most memory at a time, disk, and about how long.

memory = process + block + codes + max over layers of what solving takes + what the runs of the block hold. A layer
(out, in) is solved in 4 max(6 in^2, 4 in^2 + 6 out in) bytes where second moments are factored: these, their sum,
damped and ordered copies, factor and inverse; later the weight, its errors and codes as floats.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fewbit.evaluation.size import megabytes

#: What compilers of loops and libraries of products take beside arrays.
_ASIDE = 256 << 20
#: Bytes a second that files are read and hashed at.
_READING = 400e6


@dataclass(frozen=True, slots=True)
class SolvedLayer:
    """A layer of a block as far as its cost goes."""

    outputs: int
    inputs: int
    #: Whether it is quantized, statistics of its inputs are gathered, and these are second moments, which are factored.
    quantized: bool
    measured: bool
    factored: bool


@dataclass(frozen=True, slots=True)
class Part:
    """A block, or a module outside of all."""

    #: In float32, and of the largest tensor as it is stored.
    nbytes: int
    largest: int
    layers: tuple[SolvedLayer, ...] = ()
    #: Whether all batches go through it, in the blocks; what is outside sees a batch, or nothing.
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a model is calibrated on: rows of all batches, of the largest one, and how many batches there are."""

    rows: int = 0
    largest: int = 0
    batches: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """What a streamed run does."""

    parts: Sequence[Part]
    tokens: Tokens
    #: Bytes of the float model as it is stored, and of the output.
    stored: int
    output: int
    #: Numbers of a row that block hands to block.
    width: int
    #: Layers of a block one after the other; for each batch a run back for gradients.
    sequential: bool = True
    guided: bool = False
    #: Whether the runs of a block wait at its layers, all batches at once.
    waiting: bool = True


@dataclass(frozen=True, slots=True)
class Budget:
    """The most bytes in memory at a time and on the disk, and seconds."""

    memory: int
    disk: int
    seconds: float

    def __str__(self) -> str:
        minutes = self.seconds / 60
        long = f"{minutes:.0f} minutes" if minutes >= 2 else f"{self.seconds:.0f} seconds"
        return (
            f"predicted: at most {megabytes(self.memory)} of memory, {megabytes(self.disk)} on the disk, about {long}"
        )


def budget_of(work: Work, process: int, flops: float) -> Budget:
    """Return what `work` takes in a process that holds `process` bytes and multiplies `flops` times a second."""
    memory = process + _ASIDE + max((_memory(part, work) for part in work.parts), default=0)
    states = 4 * work.tokens.rows * work.width
    return Budget(memory, work.output + 3 * states, _seconds(work, flops))


def _memory(part: Part, work: Work) -> int:
    """Return the bytes that a part takes while it is read, solved and run."""
    read = part.nbytes + 2 * part.largest
    solving = max((_solving(own) for own in part.layers if own.quantized), default=0)
    if not part.repeated:
        return max(read, part.nbytes + solving) + 4 * work.tokens.largest * work.width
    if not work.sequential:
        solving += sum(8 * own.inputs**2 for own in part.layers if own.factored)
    return max(read, part.nbytes * 5 // 4 + solving) + _running(part, work)


def _solving(layer: SolvedLayer) -> int:
    squares, weight = layer.inputs**2, layer.outputs * layer.inputs
    return 4 * max(6 * squares, 4 * squares + 6 * weight) if layer.factored else 4 * 4 * weight


def _running(part: Part, work: Work) -> int:
    """Return the bytes of what flows inside of a block."""
    if not (work.tokens.rows and part.layers):
        return 0
    through = sum(own.outputs for own in part.layers) + 4 * work.width
    widest = max(max(own.inputs, own.outputs) for own in part.layers)
    waiting = work.tokens.rows * (3 * work.width + 2 * widest) if work.waiting else 0
    back = 3 * through if work.guided else through
    return 4 * (waiting + work.tokens.largest * back)


def _seconds(work: Work, flops: float) -> float:
    rows, count, read = work.tokens.rows, 0.0, 2.0 * work.stored
    for part in work.parts:
        for own in (own for own in part.layers if part.repeated or own.quantized):
            weight = float(own.outputs * own.inputs)
            passes = (5 if work.guided else 2) if work.waiting else 8
            count += 2.0 * rows * weight * passes + (rows * own.inputs**2 if own.measured else 0.0)
            count += 3.0 * own.inputs**3 + 16.0 * weight * own.inputs if own.factored else 40.0 * weight
    read += 2.0 * work.stored * work.tokens.batches if work.guided else work.stored
    return count / flops + read / _READING + 1.0


def products_per_second() -> float:
    """Return how many multiplications and additions of float32 this machine does in a second, by a small product."""
    import torch

    a = torch.ones(512, 512)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        _ = a @ a
        best = max(best, 2.0 * 512**3 / max(time.perf_counter() - started, 1e-6))
    return best


def resident_now() -> int:
    """Return the bytes that this process holds; where the system does not say, what one with torch usually does."""
    from pathlib import Path

    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 512 << 20
    import mmap

    return pages * mmap.PAGESIZE
