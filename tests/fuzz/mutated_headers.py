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
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from fewbit.checkpoints.gguf_header import parse_gguf_header
from fewbit.checkpoints.safetensors_file import read_tensors
from fewbit.checkpoints.safetensors_header import header_length, parse_header
from fewbit.errors import FewbitError

#: Bytes that the readers may take beyond what is there when the first case begins.
MEMORY = 256 << 20
#: Every so many accepted cases go through a file as well, to the library that reads it in the end.
SAMPLED = 10
NUMBERS = [
    0, 1, 2, 3, 7, 8, 31, 32, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63,
    2**64 - 1,
]  # fmt: skip
WORDS = [
    "-1", "0.5", "1e400", "NaN", "null", "true", '""', "[]", "{}", '"F32"', '"BF16"', '"I8"', '"BOOL"', "[[[[1]]]]",
    '"../a"', '"\\ud800"', '"\\u0000"', "-0", "9" * 5000,
]  # fmt: skip


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


# Genuine files.


def safetensors_files() -> list[bytes]:
    """Return files of several types, shapes and sizes."""
    rng = np.random.default_rng(0)
    small = {"weight": rng.standard_normal((4, 6)).astype(np.float32), "bias": np.zeros(4, np.float32)}
    every = {
        f"model.layers.0.{kind.__name__}": np.zeros((3, 8), kind)
        for kind in (np.float64, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_)
    }
    odd = {
        "scalar": np.ones((), np.float32), "empty": np.zeros((0, 7), np.float32), "a b/ü": np.zeros(3, np.int8),
        "bf16": np.zeros((2, 2), ml_dtypes.bfloat16), "f8": np.zeros(5, ml_dtypes.float8_e4m3fn),
    }  # fmt: skip
    many = {f"model.layers.{n}.mlp.up_proj.weight": np.zeros((2, 3), np.float16) for n in range(30)}
    return [save(small), save(every, {"format": "pt"}), save(odd, {"x": "y"}), save(many), save({})]


def gguf_files() -> list[bytes]:
    """Return files with values of every type, arrays, several alignments and quantized tensors."""
    return [_gguf_file(number) for number in range(4)]


def _gguf_file(number: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if number == 1:
            writer.add_custom_alignment(64)
        writer.add_block_count(2)
        writer.add_embedding_length(64)
        writer.add_layer_norm_rms_eps(1e-5)
        if number != 2:
            writer.add_token_list([f"w{n}" for n in range(20 * (number + 1))])
            writer.add_token_scores([0.5] * 20)
            writer.add_array("flags", [True, False])
            writer.add_bool("yes", True)
            writer.add_int64("long", -5)
            writer.add_float64("double", 0.1)
        for name in ("token_embd", "blk.0.attn_q", "blk.0.attn_k")[: number + 1]:
            writer.add_tensor(f"{name}.weight", np.ones((4, 64), np.float32 if number else np.float16))
        if number == 3:
            writer.add_tensor(
                "blk.0.ffn_up.weight", np.ones((4, 36), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0
            )
            writer.add_tensor("blk.0.x", np.ones((2, 3, 2, 2), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


# Mutations. Each takes a generator, a file and another file, and returns what became of the file.


def _place(rng: random.Random, content: bytes) -> int:
    """Return a position, mostly in the header, which is where the files begin."""
    return rng.randrange(max(1, len(content) if rng.random() < 0.1 else min(len(content), 1500)))


def flipped(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Turn one to eight bits over."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[_place(rng, content)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwritten(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Put a number that is often wrong over some bytes; over the first ones, which are lengths and counts, likely."""
    place = rng.choice([0, 4, 8, 16, 24]) if rng.random() < 0.3 else _place(rng, content)
    width = rng.choice([1, 2, 4, 8, 8])
    number = rng.choice(NUMBERS) if rng.random() < 0.8 else rng.randrange(2**64)
    packed = (number % 2 ** (8 * width)).to_bytes(width, rng.choice(["little", "little", "big"]))
    return content[:place] + packed + content[place + width :]


def truncated(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Cut the end off."""
    return content[: rng.randrange(len(content))]


def cut(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Leave some bytes out."""
    place = _place(rng, content)
    return content[:place] + content[place + rng.choice([1, 2, 4, 8, 30]) :]


def doubled(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Repeat some bytes."""
    place, length = _place(rng, content), rng.choice([1, 4, 8, 24, 80])
    return content[: place + length] + content[place:]


def swapped(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Exchange two runs of bytes of equal length."""
    length = rng.choice([1, 4, 8, 20])
    first, second = sorted((_place(rng, content), _place(rng, content)))
    if second < first + length:
        return content[::-1]
    a, b = content[first : first + length], content[second : second + length]
    return content[:first] + b + content[first + length : second] + a + content[second + length :]


def spliced(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Begin as one file and end as another."""
    return content[: _place(rng, content)] + other[_place(rng, other) :]


def filled(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Put noise over a run of bytes."""
    place, length = _place(rng, content), rng.choice([4, 16, 100])
    return content[:place] + rng.randbytes(length) + content[place + length :]


def _json_of(content: bytes) -> tuple[str, bytes]:
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length].decode(), content[8 + length :]


def _file_of(text: str, data: bytes) -> bytes:
    header = text.encode("utf-8", errors="surrogatepass")
    return struct.pack("<Q", len(header)) + header + data


def renumbered(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Put another number or word in the place of a number of the JSON; the length of the header is mended."""
    text, data = _json_of(content)
    found = list(re.finditer(r"\d+", text))
    if not found:
        return _file_of(rng.choice(WORDS), data)
    place = rng.choice(found)
    new = rng.choice(WORDS) if rng.random() < 0.4 else str(rng.choice(NUMBERS))
    return _file_of(text[: place.start()] + new + text[place.end() :], data)


def reworded(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Put another word in the place of a string of the JSON: names, types; the length of the header is mended."""
    text, data = _json_of(content)
    found = list(re.finditer(r'"[^"]*"', text))
    if not found:
        return _file_of(text + rng.choice(WORDS), data)
    place = rng.choice(found)
    new = rng.choice([*WORDS, *(match[0] for match in found)])
    return _file_of(text[: place.start()] + new + text[place.end() :], data)


def restructured(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Move whole parts of the JSON: entries left out, exchanged, taken from another file, nested, named twice."""
    text, data = _json_of(content)
    table, foreign = json.loads(text), json.loads(_json_of(other)[0])
    names = list(table)
    if not names:
        return _file_of(json.dumps(foreign), data)
    name, second = rng.choice(names), rng.choice(names)
    what = rng.randrange(6)
    if what == 0:
        del table[name]
    elif what == 1:
        table[name], table[second] = table[second], table[name]
    elif what == 2:
        table.update(foreign)
    elif what == 3:
        nested = json.dumps(table[name])
        depth = rng.choice([1, 10, 70, 2000])
        return _file_of(f"{json.dumps(table)[:-1]}, {json.dumps(name)}: {'[' * depth}{nested}{']' * depth}}}", data)
    elif what == 4:
        return _file_of(f"{json.dumps(table)[:-1]}, {json.dumps(name)}: {json.dumps(table[second])}}}", data)
    else:
        table[name] = rng.choice([None, 1, [], {}, "x", [table[second]]])
    return _file_of(json.dumps(table), data)


def lengthened(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Put a wrong number over the length of a string of a GGUF file, or over the type or count that follows one."""
    strings = [match.start() for match in re.finditer(rb"[a-z_.0-9]{2,}", content[:3000])]
    place = rng.choice(strings) + rng.choice([-8, -8, -8, -12, -4, 0])
    return content[: max(0, place)] + struct.pack("<Q", rng.choice(NUMBERS)) + content[max(0, place) + 8 :]


def retyped(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Put the number of a type, of axes or of an alignment over four bytes of a GGUF file."""
    place = 4 * (_place(rng, content) // 4) + rng.randrange(4)
    return content[:place] + struct.pack("<I", rng.choice([*range(45), 64, 2**31, 2**32 - 1])) + content[place + 4 :]


def described_wrongly(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Change what a GGUF file says of one tensor: its axes, a size, its type, its offset; or the alignment of all."""
    alignment = content.find(b"general.alignment")
    if alignment >= 0 and rng.random() < 0.2:
        place = alignment + len("general.alignment") + 4
        return (
            content[:place]
            + struct.pack("<I", rng.choice([0, 1, 8, 16, 32, 48, 128, 2**20, 2**31]))
            + content[place + 4 :]
        )
    found = list(re.finditer(rb"(?:token_embd|blk\.0\.attn_q|blk\.0\.attn_k|blk\.0\.ffn_up)\.weight", content))
    place = rng.choice(found).end()
    axes = int.from_bytes(content[place : place + 4], "little") % 8
    if rng.random() < 0.15:
        return content[:place] + struct.pack("<I", rng.choice(NUMBERS) % 2**32) + content[place + 4 :]
    part = rng.randrange(axes + 2)
    if part == axes:
        kind = place + 4 + 8 * axes
        return content[:kind] + struct.pack("<I", rng.randrange(45)) + content[kind + 4 :]
    number = rng.choice([*NUMBERS, *range(32, 4096, 32), 48, 100])
    place += 4 + 8 * part + (4 if part > axes else 0)
    return content[:place] + struct.pack("<Q", number) + content[place + 8 :]


Mutation = Callable[[random.Random, bytes, bytes], bytes]
BLIND: list[Mutation] = [flipped, overwritten, truncated, cut, doubled, swapped, spliced, filled]
MUTATIONS: dict[str, list[Mutation]] = {
    "safetensors": [*BLIND, renumbered, renumbered, reworded, restructured],
    "gguf": [*BLIND, lengthened, retyped, *[described_wrongly] * 6],
}
GENUINE = {"safetensors": safetensors_files, "gguf": gguf_files}


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
            except (
                ValueError,
                TypeError,
                AttributeError,
                IndexError,
                RecursionError,
            ):  # no object, or no string, is left to mutate
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


def run(kind: str, first: int, count: int, seed: int = 0) -> Tally:
    """Put the cases through the readers."""
    check, confirm = CHECKS[kind]
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"m.{kind}"
        for number, content in cases(kind, first, count, seed):
            started = time.perf_counter()
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
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                tally.findings.append(f"case {number}: {traceback.format_exc(limit=-4)}")
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
    given = parser.parse_args()
    run(given.kind, given.first, min(given.cases, 100), given.seed)  # libraries take what they take for themselves
    limit_memory(MEMORY)
    started = time.perf_counter()
    tally = run(given.kind, given.first, given.cases, given.seed)
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
