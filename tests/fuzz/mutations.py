"""What befalls a file: each takes a generator, a file and another file, and returns what became of the first."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable

NUMBERS = [
    0, 1, 2, 3, 7, 8, 31, 32, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63,
    2**64 - 1,
]  # fmt: skip
WORDS = [
    "-1", "0.5", "1e400", "NaN", "null", "true", '""', "[]", "{}", '"F32"', '"BF16"', '"I8"', '"BOOL"', "[[[[1]]]]",
    '"../a"', '"\\ud800"', '"\\u0000"', "-0", "9" * 5000,
]  # fmt: skip


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
