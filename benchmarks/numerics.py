"""How fast numbers are encoded, decoded and fake-quantized, as a ratio to copying the array: 1 is a copy's speed.

Run: python benchmarks/numerics.py [--quick] [--backends numpy torch torch.compile jax] [--schemes "int4 g64" ...]
     python benchmarks/numerics.py --memory    extra memory and time of quantizing a 4096 x 14336 matrix with NumPy
A copy and an operation take turns and their medians are compared. NumPy and eager torch are the reference path.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from fewbit.numerics.groups import beside_boxes, merge, split
from fewbit.numerics.namespace import Array, array_namespace, numbers_at_once, to_float32
from fewbit.qtensor import QTensor, fake_quantize, quantize
from fewbit.ranges.absmax import AbsMax
from fewbit.report.data import installed_versions, this_machine
from fewbit.schemes.notation import parse_scheme
from fewbit.schemes.scheme import Scheme

SCHEMES = (
    "int8 channel", "int4 g64", "int4 g64 asym", "e4m3 channel", "e2m1 g32", "mxfp4", "nvfp4", "nf4 g64", "ternary g64",
)  # fmt: skip
MEMORY_SCHEMES = (
    "int8 channel", "int4 g64", "int4 g64 asym", "int4 g64 mse", "int8 tensor", "int8 tensor percentile", "nvfp4",
)  # fmt: skip
OPERATIONS = ("encode", "decode", "fake-quantize, scale given", "fake-quantize")
#: What one scale-given operation takes: values, scale, zero point (`None` when symmetric).
Given = Callable[[Array, Array, Array | None], Array]
Call = tuple[Callable[..., Array], list[Array | None]]


# ---------------------------------------------------------------------------------------------------- the operations


def encode_with(scheme: Scheme) -> Given:
    """Return the function from values and their scale to codes, in slices as `fewbit.qtensor.quantize` does it."""

    def encode(values: Array, scale: Array, zero: Array | None) -> Array:
        box, rows = scheme.granularity.box(values.shape), values.shape[0]
        step = max(1, numbers_at_once(values) // values.shape[1]) if box[0] == 1 else rows
        pieces = []
        for start in range(0, rows, step):
            piece, own = values[start : start + step, ...], slice(start, start + step)
            boxes = split(to_float32(piece), box)
            codes = scheme.grid.codes(boxes, scale[own, ...], None if zero is None else zero[own, ...])
            pieces.append(merge(codes, tuple(piece.shape)))
        return pieces[0] if len(pieces) == 1 else array_namespace(values).concat(pieces, axis=0)

    return encode


def round_with(scheme: Scheme) -> Given:
    """Return the function from values and their scale to rounded values: what a static activation would do."""

    def rounded(values: Array, scale: Array, zero: Array | None) -> Array:
        boxes = split(to_float32(values), scheme.granularity.box(values.shape))
        return merge(scheme.grid.rounded(boxes, scale, zero), tuple(values.shape))

    return rounded


def decode_with(like: QTensor) -> Callable[..., Array]:
    """Return the function from the arrays of a QTensor such as `like` to float32 values."""

    def decode(*arrays: Array) -> Array:
        remaining = iter(arrays)
        return like.map(lambda _: next(remaining)).dequantize()

    return decode


def arrays_of(quantized: QTensor) -> list[Array]:
    """Return the arrays of a QTensor in the order that `decode_with` takes them."""
    found: list[Array] = []
    quantized.map(lambda array: found.append(array) or array)
    return found


# ------------------------------------------------------------------------------------------------------ the backends


@dataclass(frozen=True)
class Backend:
    """An array framework, as what the benchmark needs of it."""

    name: str
    array: Callable[[np.ndarray], Array]
    compiled: Callable[[Callable[..., Array]], Callable[..., Array]]
    copy: Callable[[Array], Array]
    wait: Callable[[Array], Any] = lambda array: array
    #: Called before each scheme.
    forget: Callable[[], None] = lambda: None


def numpy_backend() -> Backend:
    return Backend("numpy", lambda values: values, lambda function: function, np.copy)


def torch_backend() -> Backend:
    import torch

    return Backend("torch", torch.from_numpy, lambda function: function, torch.clone)


def compiled_backend() -> Backend:
    import torch

    kind = "inductor" if any(map(shutil.which, ("g++", "clang++"))) else "aot_eager"
    name = "torch.compile" if kind == "inductor" else "torch.compile, aot_eager (no C++ compiler)"
    return Backend(
        name,
        torch.from_numpy,
        lambda function: torch.compile(function, backend=kind, dynamic=False),
        torch.clone,
        forget=torch._dynamo.reset,
    )


def jax_backend() -> Backend:
    import jax

    return Backend("jax", jax.numpy.asarray, jax.jit, jax.jit(jax.numpy.copy), jax.block_until_ready)


BACKENDS = {"numpy": numpy_backend, "torch": torch_backend, "torch.compile": compiled_backend, "jax": jax_backend}


def available(names: Sequence[str]) -> Iterator[Backend]:
    """Yield the backends that can be imported, and say why the others cannot."""
    for name in names:
        try:
            yield BACKENDS[name]()
        except ImportError as error:
            print(f"Without {name}: {error}.\n")


# --------------------------------------------------------------------------------------------------------- the times


class Operation(NamedTuple):
    """What is timed."""

    function: Callable[..., Array]
    arguments: list[np.ndarray | None]
    #: What is copied for comparison.
    copied: np.ndarray


@dataclass(frozen=True)
class Row:
    """What was measured of a scheme in a backend."""

    backend: str
    scheme: str
    #: Milliseconds of a copy, in turns with `encode`.
    copy: float
    #: Time of a copy divided by that of the operation.
    ratios: dict[str, float]


def measure(backend: Backend, text: str, found: dict[str, Operation], limits: tuple[int, float]) -> Row:
    backend.forget()
    copies, ratios = [], {}
    for name, (function, arguments, copied) in found.items():
        call = backend.compiled(function), [None if part is None else backend.array(part) for part in arguments]
        took = take_turns(backend, (backend.copy, [backend.array(copied)]), call, limits)
        copies.append(took[0])
        ratios[name] = took[0] / took[1]
    return Row(backend.name, text, 1e3 * copies[0], ratios)


def operations(scheme: Scheme, values: np.ndarray) -> dict[str, Operation]:
    """Return each operation of `OPERATIONS`; a scale that is given is that of the extremes."""
    searched = scheme.ranging.name not in ("absmax", "minmax")
    quantized = quantize(values, replace(scheme, range_method=AbsMax()) if searched else scheme)
    zero = None if quantized.zero_point is None else np.float32(beside_boxes(quantized.zero_point))
    given = [values, beside_boxes(quantized.scale_values()), zero]
    # A search takes hundreds of copies and more: a 64th of the rows will do.
    part = values[: -(-len(values) // 64)] if searched else values
    found = (
        Operation(encode_with(scheme), given, values),
        Operation(decode_with(quantized), arrays_of(quantized), values),
        Operation(round_with(scheme), given, values),
        Operation(lambda x: fake_quantize(x, scheme), [part], part),
    )
    return dict(zip(OPERATIONS, found, strict=True))


def take_turns(backend: Backend, first: Call, second: Call, limits: tuple[int, float]) -> tuple[float, float]:
    """Return the median seconds of two calls that take turns, so that a busy machine slows both."""
    repeats, budget = limits
    for call in (first, second):
        seconds_of(backend, call)  # compiles, and fills caches
    pairs: list[tuple[float, float]] = []
    while len(pairs) < repeats and sum(map(sum, pairs)) < budget:
        pairs.append((seconds_of(backend, first), seconds_of(backend, second)))
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


def seconds_of(backend: Backend, call: Call) -> float:
    function, arguments = call
    started = time.perf_counter()
    backend.wait(function(*arguments))
    return time.perf_counter() - started


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, and return whether it does; to be called before threads begin.

    Otherwise every large result lies in fresh pages, which cost a copy five times its own time; an operation would
    look that much better than it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    one_arena, never_map, never_trim = (-8, 1), (-4, 0), (-1, 2**31 - 1)
    return all(mallopt(*option) for option in (one_arena, never_map, never_trim))


def throughput(arguments: argparse.Namespace) -> None:
    kept = keep_freed_memory()
    side = 512 if arguments.quick else arguments.size
    values = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    pages = "memory is reused" if kept else "every result lies in fresh memory, which flatters the ratios"
    about = f"{side} x {side} float32, {pages}; {machine()}"
    print(f"Speed as a share of a copy's. {about}\n")
    backends = list(available(arguments.backends))
    print(line(("scheme", "backend", "copy, ms", *OPERATIONS)))
    print(line(["---", "---", *["---:"] * (len(OPERATIONS) + 1)]), flush=True)
    rows = []
    for text in arguments.schemes or SCHEMES:
        found = operations(parse_scheme(text), values)
        for backend in backends:
            row = measure(backend, text, found, (arguments.repeats, arguments.seconds))
            cells = [share(row.ratios[name]) for name in OPERATIONS]
            print(line([text, row.backend, f"{row.copy:.2f}", *cells]), flush=True)
            rows.append(row)
    save(arguments.json, about, rows)


def share(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.4f}"


# -------------------------------------------------------------------------------------------------------- the memory


@dataclass(frozen=True)
class MemoryRow:
    """What quantizing a matrix took beside the matrix itself; the result counts."""

    scheme: str
    extra_bytes: int
    seconds: float


def memory(arguments: argparse.Namespace) -> None:
    shape = (256, 1024) if arguments.quick else (4096, 14336)
    weight_bytes = 4 * shape[0] * shape[1]
    about = f"{shape[0]} x {shape[1]} float32 ({weight_bytes / 1e6:.0f} MB), numpy; {machine()}"
    print(f"Extra memory of quantize, its result included. {about}\n")
    print(line(("scheme", "extra memory, MB", "as a multiple of the matrix", "seconds")))
    print(line(["---", "---:", "---:", "---:"]), flush=True)
    rows = []
    for text in arguments.schemes or MEMORY_SCHEMES:
        # A process each: the kernel keeps the most memory that a process ever had.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(memory_of, (text, shape))
        cells = f"{row.extra_bytes / 1e6:.0f}", f"{row.extra_bytes / weight_bytes:.2f}", f"{row.seconds:.1f}"
        print(line([text, *cells]), flush=True)
        rows.append(row)
    save(arguments.json, about, rows)


def memory_of(text: str, shape: tuple[int, int]) -> MemoryRow:
    scheme = parse_scheme(text)
    quantize(np.ones((2, 2), np.float32), scheme)  # what is imported late is no part of it
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    before, started = most_memory(), time.perf_counter()
    quantize(values, scheme)
    return MemoryRow(text, most_memory() - before, time.perf_counter() - started)


def most_memory() -> int:
    """Return the most bytes that this process has had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ------------------------------------------------------------------------------------------------------- the output


def machine() -> str:
    versions = installed_versions()
    found = [f"{name} {versions[name]}" for name in ("python", "numpy", "torch") if name in versions]
    with contextlib.suppress(metadata.PackageNotFoundError):
        found.append(f"jax {metadata.version('jax')}")
    used = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{this_machine()}, {used} in use; {', '.join(found)}"


def save(path: Path | None, about: str, rows: Sequence[Row | MemoryRow]) -> None:
    if path:
        path.write_text(json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the array")
    parser.add_argument("--quick", action="store_true", help="a small array, which fits a cache: to see that it runs")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--schemes", nargs="+")
    parser.add_argument("--repeats", type=int, default=15, help="most turns of a copy and an operation")
    parser.add_argument("--seconds", type=float, default=5.0, help="after which no further turn is begun")
    parser.add_argument("--memory", action="store_true", help="extra memory instead of speed")
    parser.add_argument("--json", type=Path, help="a file for the same numbers")
    arguments = parser.parse_args(words)
    (memory if arguments.memory else throughput)(arguments)


if __name__ == "__main__":
    sys.exit(main())
