"""Mutates the headers of genuine safetensors and GGUF files and puts each through the readers: a program of its own.

    python tests/fuzz/mutated_headers.py safetensors --cases 10000

Every case follows from the seed and its number. A case is read to something consistent, or refused by an error of
fewbit; anything else is a finding, printed with the number that repeats it (--first N --cases 1). The memory that the
process may take beyond its libraries is limited, and the slowest case is reported.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import random
import re
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gguf
from genuine_files import gguf_files, safetensors_files
from mutations import MUTATIONS, flipped
from safetensors import SafetensorError, deserialize

from fewbit.checkpoints.gguf_header import parse_gguf_header
from fewbit.checkpoints.safetensors_file import read_tensors
from fewbit.checkpoints.safetensors_header import header_length, parse_header
from fewbit.errors import FewbitError

#: Bytes that the readers may take beyond what is there when the first case begins.
MEMORY = 256 << 20
#: Every so many accepted cases go through a file as well, to the library that reads it in the end.
SAMPLED = 10
GENUINE = {"safetensors": safetensors_files, "gguf": gguf_files}


@dataclass(slots=True)
class Tally:
    """What became of the cases."""

    accepted: int = 0
    #: Accepted cases that a library read from a file afterwards, to the same tensors.
    confirmed: int = 0
    #: Refused cases by error, without names and numbers.
    refused: Counter[str] = field(default_factory=Counter)
    #: Anything else: case and traceback.
    findings: list[str] = field(default_factory=list)
    slowest: float = 0.0


def cases(kind: str, first: int, count: int, seed: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield numbers and contents of mutated files; a third of them was mutated more than once."""
    genuine = GENUINE[kind]()
    for number in range(first, first + count):
        rng = random.Random(f"{kind} {seed} {number}")
        content = rng.choice(genuine)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            mutation = rng.choice(MUTATIONS[kind])
            try:
                content = mutation(rng, content, rng.choice(genuine)) or b"\0"
            # No object, or no string, is left to mutate.
            except (ValueError, TypeError, AttributeError, IndexError, RecursionError):
                content = flipped(rng, content, b"")
        yield number, content


# What has to hold of a case that is read.


def check_safetensors(content: bytes) -> None:
    """Read the case as `read_header` does, without a file, and see that what was read is consistent."""
    try:
        length = header_length(content[:8], len(content))
        header = parse_header(content[8 : 8 + length], len(content) - 8 - length)
    except FewbitError as error:
        if not STRICTER.search(str(error)) and _library_reads(content):
            raise AssertionError(f"refused though it is in order: {error}") from error
        raise
    if not _library_reads(content):  # `read_header` asks the library too, and refuses what it refuses
        raise FewbitError("the library refuses it")
    library = dict(deserialize(content))
    assert {e.tensor.name for e in header.entries} == library.keys()
    for entry in header.entries:
        theirs, stored = library[entry.tensor.name], entry.tensor
        assert list(stored.shape) == theirs["shape"]
        assert content[header.data_start + entry.begin : header.data_start + entry.end] == bytes(theirs["data"])
        assert stored.nbytes == entry.end - entry.begin


def _library_reads(content: bytes) -> bool:
    try:
        deserialize(content)
    except SafetensorError:
        return False
    return True


def confirm_safetensors(path: Path) -> None:
    """Read the file itself to arrays."""
    for _, array in read_tensors(path):
        assert array.nbytes <= path.stat().st_size


def check_gguf(content: bytes) -> None:
    """Read the case, and see that what was read is consistent."""
    header = parse_gguf_header(io.BytesIO(content), len(content))
    taken = sorted((t.offset, t.offset + t.nbytes) for t in header.tensors if t.nbytes)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken))
    assert not taken or header.data_start + taken[-1][1] <= len(content)
    assert len({tensor.name for tensor in header.tensors}) == len(header.tensors)


def confirm_gguf(path: Path) -> None:
    """Let the gguf package read the file: to the same values and tensors."""
    header = parse_gguf_header(io.BytesIO(path.read_bytes()), path.stat().st_size)
    reader = gguf.GGUFReader(path)
    assert [(t.name, t.shape, header.data_start + t.offset, t.nbytes) for t in header.tensors] == [
        (t.name, tuple(reversed([int(n) for n in t.shape])), t.data_offset, t.n_bytes) for t in reader.tensors
    ]
    fields = {name for name in reader.fields if not name.startswith("GGUF.")}
    assert fields == header.values.keys() - {name for name in header.values if name.startswith("GGUF.")}


#: What fewbit refuses on purpose and the safetensors library reads.
STRICTER = re.compile(
    "twice; which of them|do not print|reads as a path|empty name|characters, more than|the types that fewbit reads"
    "|more numbers than any file|is not a list of sizes|nests deeper"
)
CHECKS = {"safetensors": (check_safetensors, confirm_safetensors), "gguf": (check_gguf, confirm_gguf)}


# The negative control: readers that take a header at its word.


def believe_safetensors(content: bytes) -> None:
    """Take the bytes that the header gives each tensor."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for entry in header.values():
        begin, end = entry["data_offsets"]
        assert len(data[begin:end]) == len(bytearray(end - begin))


def believe_gguf(content: bytes) -> None:
    """Read with the gguf package alone."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        gguf.GGUFReader(file.name)


BELIEVING = {"safetensors": (believe_safetensors, lambda _: None), "gguf": (believe_gguf, lambda _: None)}


def run(kind: str, first: int, count: int, seed: int = 0, *, believing: bool = False) -> Tally:
    """Put the cases through the readers, or through ones that believe."""
    check, confirm = (BELIEVING if believing else CHECKS)[kind]
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"m.{kind}"
        for number, content in cases(kind, first, count, seed):
            started, full = time.perf_counter(), False
            try:
                check(content)
                if tally.accepted % SAMPLED == SAMPLED - 1:
                    path.write_bytes(content)
                    confirm(path)
                    tally.confirmed += 1
                tally.accepted += 1
            except FewbitError as error:
                said = re.sub(r"'[^']*'?|\"[^\"]*\"?|tensor \S+|\[.*?\]|-?\d+|[^ -~]+", "#", str(error))
                tally.refused[" ".join(said.split()[:8])] += 1
            except MemoryError:
                full = True  # said below: what filled the memory is held until here
            except Exception:
                tally.findings.append(f"case {number}: {traceback.format_exc(limit=-4)}")
            if full:
                tally.findings.append(f"case {number}: more than {MEMORY} bytes of memory")
            tally.slowest = max(tally.slowest, time.perf_counter() - started)
    return tally


def limit_memory(extra: int) -> None:
    """Let this process take no more than `extra` bytes beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    """Run from the command line and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=CHECKS)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--believing", action="store_true", help="the negative control: readers that do not check")
    given = parser.parse_args()
    run(given.kind, given.first, min(given.cases, 100), given.seed)  # libraries take what they take for themselves
    limit_memory(MEMORY)
    started = time.perf_counter()
    tally = run(given.kind, given.first, given.cases, given.seed, believing=given.believing)
    summary = {
        "kind": given.kind, "cases": given.cases, "seed": given.seed, "accepted": tally.accepted,
        "confirmed": tally.confirmed, "refused": sum(tally.refused.values()), "findings": tally.findings,
        "slowest": round(tally.slowest, 3), "seconds": round(time.perf_counter() - started, 1),
        "reasons": dict(tally.refused.most_common()),
    }  # fmt: skip
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    sys.exit(bool(tally.findings))


if __name__ == "__main__":
    main()
