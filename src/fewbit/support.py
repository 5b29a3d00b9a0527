"""What there is and what works with what, asked from the code itself: the tables of `fewbit support`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fewbit.algorithms import ALGORITHMS
from fewbit.catalogue import lookup
from fewbit.errors import SchemeError
from fewbit.formats import FORMATS
from fewbit.formats.integer import Int
from fewbit.interfaces import CHECKPOINTS, Layer, QuantizedLayer, checkpoint_format
from fewbit.presets import PRESETS
from fewbit.ranges import RANGES
from fewbit.schemes.notation import WHOLE, parse_scheme
from fewbit.schemes.scheme import Scheme

#: Plain types of the frameworks, listed beside fewbit's formats for comparison.
_PLAIN = ("int32", "int64", "float16", "bfloat16", "float32", "float64")
_GRANULARITIES = ("tensor", "channel", "g64", "tile128x128", "token")
_LAYER = Layer("layer", "linear", (128, 128), "Linear")


@dataclass(frozen=True, slots=True)
class FormatRow:
    """A number format in figures."""

    name: str
    bits: int
    #: How many finite values it has; `None` for plain types of more than 16 bits.
    levels: int | None
    #: The least magnitude but 0.
    smallest: float
    #: The largest value.
    largest: float
    #: In what products of it are summed.
    accumulator: str


@dataclass(frozen=True, slots=True)
class SchemeRow:
    """A scheme and what takes it."""

    scheme: str
    #: Bits a number in a weight of 128 x 128, scales counted.
    bits: float
    #: Whether the zero point may be asymmetric.
    asymmetric: bool
    #: Names of the algorithms that quantize to it.
    algorithms: tuple[str, ...]
    #: Names of the checkpoint formats that store it.
    files: tuple[str, ...]


def formats() -> list[FormatRow]:
    """Return the number formats of the catalogue, then the plain types."""
    rows = []
    for name in FORMATS:
        form = lookup(FORMATS, name, what="number format")
        smallest = min(abs(level) for level in form.levels if level)
        wide = isinstance(form, Int) and form.bits > 8
        accumulator = ("int64" if wide else "int32") if isinstance(form, Int) else "float32"
        rows.append(FormatRow(name, form.bits, len(form.levels), smallest, form.levels[-1], accumulator))
    return rows + [_plain(name) for name in _PLAIN]


@lru_cache
def schemes() -> tuple[SchemeRow, ...]:
    """Return every format of the catalogue under every granularity, and the whole schemes, each tried on a weight."""
    texts = [f"{form} {granularity}" for form in FORMATS for granularity in _GRANULARITIES] + list(WHOLE)
    rows = []
    for text in texts:
        scheme = _parsed(text) or _parsed(f"{text} asym")
        if scheme is None:
            continue
        layer = QuantizedLayer(_LAYER, scheme)
        files = [name for name in CHECKPOINTS if checkpoint_format(name).problem(layer) is None]
        rows.append(
            SchemeRow(
                scheme=text,
                bits=scheme.bits_per_weight(_LAYER.shape),
                asymmetric=_parsed(f"{text} asym") is not None,
                algorithms=tuple(name for name in ALGORITHMS if _solves(name, scheme)),
                files=tuple(files),
            )
        )
    return tuple(rows)


def tables() -> dict[str, Any]:
    """Return everything that `fewbit support` prints, as plain values."""
    from dataclasses import asdict

    return {
        "formats": [asdict(row) for row in formats()],
        "schemes": [asdict(row) for row in schemes()],
        "ranges": list(RANGES),
        "algorithms": list(ALGORITHMS),
        "presets": {name: f"{weight}, input {given}" if given else weight for name, (weight, given) in PRESETS.items()},
        "files": list(CHECKPOINTS),
    }


def _plain(name: str) -> FormatRow:
    if name.startswith("int"):
        bits = int(name[3:])
        return FormatRow(name, bits, None, 1.0, float(2 ** (bits - 1) - 1), "int64")
    import ml_dtypes

    info: Any = ml_dtypes.finfo(name)  # type: ignore[no-untyped-call]
    levels = 2 * (2**15 - 2**info.nmant) - 1 if info.bits == 16 else None
    accumulator = "float64" if info.bits == 64 else "float32"
    return FormatRow(name, int(info.bits), levels, float(info.smallest_subnormal), float(info.max), accumulator)


def _parsed(text: str) -> Scheme | None:
    try:
        return parse_scheme(text)
    except SchemeError:
        return None


def _solves(name: str, scheme: Scheme) -> bool:
    weight = np.linspace(-1.0, 1.0, 128 * 128, dtype=np.float32).reshape(128, 128)
    result = lookup(ALGORITHMS, name, what="algorithm")()(weight, None, scheme)
    return bool(np.isfinite(result.qtensor.dequantize()).all())
