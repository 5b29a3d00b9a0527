"""What befalls a protobuf message, an ONNX file or a tokenizer.model: one field is changed, all lengths are mended.

key = number << 3 | wire type | value; of wire type 2 a length and bytes, which may be a message again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from mutations import NUMBERS, flipped

from fewbit import protobuf_wire

#: Number, wire type, value.
Field = tuple[int, int, int | bytes]
_DEEPEST = 8


def fields(content: bytes) -> Iterator[Field]:
    """Yield number, wire type and value of each field; raises ValueError where there is no message."""
    for own in protobuf_wire.fields(content):
        if not own.number:
            raise ValueError(f"no field at byte {own.begin}")
        yield own.number, own.wire, content[own.begin : own.end] if own.wire else own.whole


def message(own: list[Field]) -> bytes:
    """Return the message of these fields."""
    parts = []
    for number, wire, value in own:
        parts.append(_spelt(number << 3 | wire))
        if isinstance(value, int):
            parts.append(_spelt(value))
        else:
            parts += [_spelt(len(value)) if wire == 2 else b"", value]
    return b"".join(parts)


def changed(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Change one field somewhere in the message."""
    return _changed(rng, content, other, 0)


def _changed(rng: random.Random, content: bytes, other: bytes, depth: int) -> bytes:
    own = list(fields(content))
    if not own:
        raise ValueError("no field is left")
    place = rng.randrange(len(own))
    number, wire, value = own[place]
    if isinstance(value, bytes) and wire == 2 and depth < _DEEPEST and rng.random() < 0.8:
        try:
            own[place] = number, wire, _changed(rng, value, other, depth + 1)
            return message(own)
        except (ValueError, IndexError):
            pass
    rng.choice(_CHANGES)(rng, own, place)
    return message(own)


def _dropped(rng: random.Random, own: list[Field], place: int) -> None:
    del own[place]


def _doubled(rng: random.Random, own: list[Field], place: int) -> None:
    own[place:place] = [own[place]] * rng.choice([1, 1, 1, 40])


def _exchanged(rng: random.Random, own: list[Field], place: int) -> None:
    other = rng.randrange(len(own))
    own[place], own[other] = own[other], own[place]


def _renumbered(rng: random.Random, own: list[Field], place: int) -> None:
    number, wire, value = own[place]
    own[place] = rng.choice([number, rng.randrange(1, 30)]), wire, value


def _another_value(rng: random.Random, own: list[Field], place: int) -> None:
    number, wire, value = own[place]
    if isinstance(value, int):
        own[place] = number, wire, rng.choice([*NUMBERS, *range(30), value ^ 1])
    elif wire == 2:
        same = [one for _, kind, one in own if kind == 2 and isinstance(one, bytes)]
        new = rng.choice([b"", value + value, value[:-1], rng.choice(same), flipped(rng, value or b"\0", b"")])
        own[place] = number, wire, rng.choice([new, new, b"../m.data", b"/etc/passwd", b"\xff", b"9" * 30])
    else:
        own[place] = number, wire, rng.randbytes(len(value))


def _added(rng: random.Random, own: list[Field], place: int) -> None:
    own.insert(place, rng.choice([(rng.randrange(1, 30), 0, rng.choice(NUMBERS)), (rng.randrange(1, 30), 2, b"")]))


_CHANGES: tuple[Callable[[random.Random, list[Field], int], None], ...] = (
    _dropped, _doubled, _exchanged, _renumbered, _another_value, _another_value, _another_value, _added,
)  # fmt: skip


def _spelt(value: int) -> bytes:
    value %= 2**64
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
