"""Lies in GGUF files and importance matrices: each takes a generator and a file, and makes it contradict itself."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

from folder_lies import PATHS
from genuine_checkpoints import legacy, legacy_entries
from gguf_text import ARRAY, BOOL, F32, F64, I32, KINDS, STRING, U32, U64, GgufText, Tensor, Value

Lie = Callable[[random.Random, GgufText], None]
HUGE = (2**31, 2**32 - 1, 2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def _tensor(rng: random.Random, file: GgufText) -> Tensor:
    return rng.choice(file.tensors)


def _value(rng: random.Random, file: GgufText) -> Value:
    return rng.choice(file.values)


def _counts(rng: random.Random, file: GgufText) -> None:
    if rng.random() < 0.5:
        file.tensor_count = rng.choice([*HUGE, len(file.tensors) + 1, len(file.tensors) + 50, 2**20])
    else:
        file.key_count = rng.choice([*HUGE, len(file.values) + 1, len(file.values) - 1, 0, 2**20])


def _version(rng: random.Random, file: GgufText) -> None:
    file.version = rng.choice([0, 1, 4, 2**31, 0x03000000, 0x02000000])


def _magic(rng: random.Random, file: GgufText) -> None:
    file.magic = rng.choice([b"GGML", b"ggjt", b"FUGG", b"\0\0\0\0", b"PK\x03\x04", b"gguf"])


def _length(rng: random.Random, file: GgufText) -> None:
    owner = _value(rng, file) if rng.random() < 0.5 else _tensor(rng, file)
    owner.length = rng.choice([*HUGE, 0])


def _text_length(rng: random.Random, file: GgufText) -> None:
    own = rng.choice([own for own in file.values if own.kind == STRING])
    own.raw = struct.pack("<Q", rng.choice(HUGE)) + own.value.encode()


def _array_length(rng: random.Random, file: GgufText) -> None:
    kind = rng.choice([U32, STRING, BOOL, U64])
    file.values.append(Value("x.array", ARRAY, raw=struct.pack("<IQ", kind, rng.choice(HUGE))))


def _array_kind(rng: random.Random, file: GgufText) -> None:
    kind = rng.choice([ARRAY, 13, 99, 2**32 - 1])
    file.values.append(Value("x.array", ARRAY, raw=struct.pack("<IQ", kind, rng.choice([0, 1, *HUGE]))))


def _value_kind(rng: random.Random, file: GgufText) -> None:
    file.values.insert(rng.randrange(len(file.values)), Value("x.kind", rng.choice([13, 14, 99, 2**31]), raw=b"\0" * 8))


def _no_bool(rng: random.Random, file: GgufText) -> None:
    file.values.append(Value("x.bool", BOOL, raw=bytes([rng.randrange(2, 256)])))


def _alignment(rng: random.Random, file: GgufText) -> None:
    wrong = [(U32, 0), (U32, 3), (U32, 48), (U32, 2**31), (U64, 2**63), (STRING, "32"), (I32, -32), (F32, 32.0)]
    file.values.append(Value("general.alignment", *rng.choice(wrong)))


def _key(rng: random.Random, file: GgufText) -> None:
    own = _value(rng, file)
    if rng.random() < 0.5:
        file.values.append(Value(own.key, own.kind, own.value))
    else:
        own.key = rng.choice(["", "\0", "a\nb", "\x1b[2J"])


def _sizes(rng: random.Random, file: GgufText) -> None:
    own = _tensor(rng, file)
    own.sizes = rng.choice([
        [*own.sizes, 2**63, 2], [2**32, 2**32, *own.sizes], [own.sizes[0], 2**64 - 1], [2**63], [0, *own.sizes],
        [own.sizes[0], 0], [-size for size in own.sizes], [own.sizes[0] + 64, *own.sizes[1:]], [2**40, *own.sizes[1:]],
        [*own.sizes, 2**32, 2**32],
    ])  # fmt: skip


def _axes(rng: random.Random, file: GgufText) -> None:
    own = _tensor(rng, file)
    own.axes = rng.choice([0, len(own.sizes) + 1, len(own.sizes) + 2, 5, 255, 2**31, 2**32 - 1])


def _offset(rng: random.Random, file: GgufText) -> None:
    own = _tensor(rng, file)
    size = len(file.written())
    own.offset = rng.choice([*HUGE, 1, 7, size // 32 * 32 + 32, 2**64 - 32, 2**63 - 32])


def _overlapping(rng: random.Random, file: GgufText) -> None:
    rng.choice(file.tensors[1:]).offset = 0


def _kind(rng: random.Random, file: GgufText) -> None:
    _tensor(rng, file).kind = rng.choice([4, 5, 31, 36, 99, 2**31, 2**32 - 1])


def _tensor_name(rng: random.Random, file: GgufText) -> None:
    own = _tensor(rng, file)
    others = [other.name for other in file.tensors if other is not own]
    own.name = rng.choice([*(path.format(own.name) for path in PATHS), *others])


def _shortened(rng: random.Random, file: GgufText) -> None:
    """Give the last tensor fewer bytes than its sizes take."""
    own = file.tensors[-1]
    own.data = own.data[: rng.randrange(max(1, len(own.data) - 31))]


# Of a model.

_SIZES = ("embedding_length", "block_count", "attention.head_count", "attention.head_count_kv", "feed_forward_length")


def _metadata(rng: random.Random, file: GgufText) -> None:
    own = rng.choice([own for own in file.values if own.key.removeprefix("llama.") in _SIZES])
    wrong: list[tuple[int, Any]] = [(U32, 0), (I32, -1), (I32, -2), (U32, 2**31), (U32, own.value + 3), (U64, 2**63),
             (F32, 0.5), (F32, float("nan")), (F32, float("inf")), (F64, 1e300), (BOOL, 1), (STRING, "2"), (STRING, ""),
             (ARRAY, (U32, [1, 2])), (ARRAY, (U32, []))]  # fmt: skip
    own.kind, own.value = rng.choice(wrong)


def _no_float(rng: random.Random, file: GgufText) -> None:
    own = rng.choice([own for own in file.values if own.kind == F32])
    wrong: list[tuple[int, Any]] = [(F32, float("nan")), (F32, float("inf")), (F64, 1e300), (F32, -1.0), (STRING, "x"),
                                    (ARRAY, (F32, [1.0])), (BOOL, 1)]  # fmt: skip
    own.kind, own.value = rng.choice(wrong)


def _unnamed(rng: random.Random, file: GgufText) -> None:
    own = next(own for own in file.values if own.key.startswith("general."))
    own.kind, own.value = rng.choice([(STRING, "martian"), (STRING, ""), (U32, 3), (ARRAY, (STRING, ["llama"]))])


def _missing(rng: random.Random, file: GgufText) -> None:
    whole = [own for own in file.tensors if own.name != "output.weight" and not own.name.endswith(".scale")]
    file.tensors.remove(rng.choice(whole))


def _foreign(rng: random.Random, file: GgufText) -> None:
    kind, size = rng.choice([("F32", 4), ("F16", 2)])
    name = rng.choice(["blk.7.attn_q.weight", "x", "blk.0.attn_q.in_sum2", "blk.-1.attn_q.weight"])
    file.tensors.append(Tensor(name, [32], KINDS[kind], b"\0" * (32 * size)))


def _no_number(rng: random.Random, file: GgufText) -> None:
    """Put NaN or infinity into the first float16 of a row of blocks; for floats of four bits, what no scale is."""
    scaled = {"Q4_0": 0, "Q4_1": 2, "Q5_0": 0, "Q5_1": 0, "Q8_0": 0, "Q2_K": 80, "Q3_K": 108, "Q4_K": 0, "Q5_K": 2,
              "Q6_K": 208, "IQ4_NL": 0, "IQ4_XS": 0}  # fmt: skip
    places = {KINDS[kind]: place for kind, place in scaled.items()}
    small = (KINDS["MXFP4"], KINDS["NVFP4"])
    own = rng.choice([own for own in file.tensors if own.kind in places or own.kind in small])
    if own.kind in places:
        place, bad = places[own.kind], rng.choice([b"\x00\x7e", b"\x00\x7c", b"\x00\xfc", b"\xff\xff"])
    else:
        place, bad = 0, b"\xff"
    own.data = own.data[:place] + bad + own.data[place + len(bad) :]


def _flat(rng: random.Random, file: GgufText) -> None:
    """Give a matrix one axis, or three."""
    own = rng.choice([own for own in file.tensors if len(own.sizes) == 2])
    columns, rows = own.sizes
    own.sizes = rng.choice([[columns * rows], [columns, 2, rows // 2], [columns, rows, 1, 1], [columns, rows // 2, 2]])


# Of an importance matrix in GGUF form.


def _counted(rng: random.Random, file: GgufText) -> None:
    """Leave sums or counts out, or let them be of other sizes or types."""
    own = _tensor(rng, file)
    what = rng.randrange(4)
    if what == 0:
        file.tensors.remove(own)
    elif what == 1:
        own.kind = KINDS["F16"]
    elif what == 2:
        own.sizes, own.data = [own.sizes[0], own.sizes[1] + 1], own.data + own.data[: 4 * own.sizes[0]]
    else:
        own.data = struct.pack("<f", rng.choice([float("nan"), float("inf"), -1.0])) + own.data[4:]


SHARED: dict[str, Lie] = {
    "counts": _counts, "version": _version, "magic": _magic, "length of a name": _length,
    "length of a text": _text_length, "length of an array": _array_length, "kind of an array": _array_kind,
    "kind of a value": _value_kind, "a bool that is none": _no_bool, "alignment": _alignment, "a key": _key,
    "sizes": _sizes, "axes": _axes, "offset": _offset, "overlapping": _overlapping, "kind of a tensor": _kind,
    "name of a tensor": _tensor_name, "shortened": _shortened, "architecture": _unnamed,
}  # fmt: skip
MODEL: dict[str, Lie] = SHARED | {
    "sizes in metadata": _metadata, "a number that is none": _no_float, "a tensor missing": _missing,
    "a tensor too many": _foreign, "a scale that is no number": _no_number, "axes of a matrix": _flat,
}  # fmt: skip
MATRIX: dict[str, Lie] = SHARED | {"sums and counts": _counted}


# Of an importance matrix in the older form.


def _legacy_length(rng: random.Random) -> bytes:
    whole = legacy(legacy_entries())
    return whole[:4] + struct.pack("<i", rng.choice([0, -1, 2**30, 2**31 - 1, -(2**31)])) + whole[8:]


def _legacy_width(rng: random.Random) -> bytes:
    whole, place = legacy(legacy_entries()), 8 + len(legacy_entries()[0][0]) + 4
    return whole[:place] + struct.pack("<i", rng.choice([0, -1, 2**30, 2**31 - 1, 4000])) + whole[place + 4 :]


def _legacy_number(rng: random.Random) -> bytes:
    (name, calls, values), *others = legacy_entries()
    wrong = [(name, calls, [rng.choice([float("nan"), float("inf"), -1.0]), *values]), (name, -calls, values)]
    return legacy([rng.choice(wrong), *others])


def _legacy_cut(rng: random.Random) -> bytes:
    """Cut off inside of the entries, whose end is one of a file as well, or inside of what follows."""
    entries, whole = len(legacy(legacy_entries(), tail=b"")), legacy(legacy_entries())
    return whole[: rng.choice([place for place in range(len(whole)) if place != entries])]


LEGACY: dict[str, Callable[[random.Random], bytes]] = {
    "count": lambda rng: legacy(legacy_entries(), count=rng.choice([0, -1, 1, 3, 2**31 - 1, -(2**31), 100])),
    "a name twice": lambda rng: legacy(legacy_entries() * 2),
    "a name that is a path": lambda rng: legacy([(b"../a", 1, [1.0]), *legacy_entries()]),
    "length of a name": _legacy_length, "count of numbers": _legacy_width, "a number that is none": _legacy_number,
    "truncated": _legacy_cut,
    "length of a text": lambda rng: legacy(
        legacy_entries(), tail=struct.pack("<ii", 7, rng.choice([-1, 3, 5, 2**31 - 1])) + b"wiki"
    ),
}  # fmt: skip
