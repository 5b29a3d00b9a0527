"""What there is and what works with what, asked from the code itself: the tables of `fewbit support`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbit.algorithms import ALGORITHMS, problem_of
from fewbit.catalogue import lookup
from fewbit.corrections import CORRECTIONS
from fewbit.errors import SchemeError
from fewbit.formats import FORMATS, LEARNED
from fewbit.formats.integer import Int
from fewbit.frontends.jax.missing_here import missing_here
from fewbit.interfaces import CHECKPOINTS, FRONTENDS, Layer, QuantizedLayer, checkpoint_format
from fewbit.presets import GGUF_PRESETS, PRESETS
from fewbit.ranges import RANGES
from fewbit.recipe import Recipe
from fewbit.rule import Rule
from fewbit.schemes.notation import WHOLE, parse_input_scheme, parse_scheme
from fewbit.schemes.scheme import Scheme
from fewbit.transforms import TRANSFORMS

if TYPE_CHECKING:
    from fewbit.kernels import Kernel, Request
    from fewbit.kernels.purpose import Purpose

#: Plain types of the frameworks, listed beside fewbit's formats for comparison.
_PLAIN = ("int32", "int64", "float16", "bfloat16", "float32", "float64")
_GRANULARITIES = ("tensor", "channel", "g64", "tile128x128", "token")
_LAYER = Layer("layer", "linear", (128, 128), "Linear")
#: Schemes that kernels are asked for.
_WEIGHTS = (
    *(f"int{bits} {granularity}" for bits in (8, 7, 4, 2) for granularity in ("channel", "tensor")),
    *(f"int4 g{size}" for size in (32, 64, 128)), "int8 channel asym", "int8 g64", "e4m3 channel", "e4m3 tensor",
    "e5m2 channel", "nf4 g64", "fp16", "bf16",
)  # fmt: skip
_INPUTS = (
    "int8 token asym", "int8 token sym", "int8 tensor asym", "int8 tensor asym static", "int8 channel static",
    "int8 g64", "uint8 token asym", "int16 token asym", "e4m3 token", "e4m3 tensor", "e4m3 tensor static",
    "fp16", "bf16",
)  # fmt: skip


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
    #: Bits a number in a weight of 128 x 128, or a span wide where that is more, scales counted.
    bits: float
    #: Whether the zero point may be asymmetric.
    asymmetric: bool
    #: Names of the algorithms that quantize to it, whatever the zero point: none, a code or a float.
    algorithms: tuple[str, ...]
    #: Names of the checkpoint formats that store it.
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    """A kernel, what it is for, and the schemes that it takes on this machine."""

    name: str
    what: str
    #: Device, types of inputs and kind of layers; empty of a kernel that is not there for speed.
    device: str = ""
    dtypes: tuple[str, ...] = ()
    layers: str = ""
    #: Where it is meant to be faster than the float layer, whether someone has measured that, and what it needs.
    faster: str = ""
    measured: bool = True
    needs: str = ""
    #: Schemes of weights and of inputs that it takes, of those that were tried.
    weights: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    #: What the machine at hand lacks for it.
    missing: str | None = None


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
    texts = [f"{form} {granularity}" for form in (*FORMATS, *LEARNED) for granularity in _GRANULARITIES] + list(WHOLE)
    rows = []
    for text in texts:
        scheme = _parsed(text) or _parsed(f"{text} asym")
        if scheme is None:
            continue
        layer = QuantizedLayer(replace(_LAYER, shape=_shape(scheme)), scheme)
        files = [name for name in CHECKPOINTS if checkpoint_format(name).problem(layer) is None]
        rows.append(
            SchemeRow(
                scheme=text,
                bits=scheme.bits_per_weight(layer.layer.shape),
                asymmetric=_parsed(f"{text} asym") is not None,
                algorithms=tuple(name for name in ALGORITHMS if _solves(name, text)),
                files=tuple(files),
            )
        )
    return tuple(rows)


@lru_cache
def kernels() -> tuple[KernelRow, ...]:
    """Return the kernels in the order of their tables, each asked for all of some schemes of weights and inputs."""
    from fewbit.kernels import kernels as table

    return tuple(_kernel_row(kernel) for kernel in table())


def _kernel_row(kernel: Kernel) -> KernelRow:
    purpose, what = kernel.purpose, str(kernel.__doc__).partition("\n")[0]
    if purpose is None:
        return KernelRow(name=kernel.name, what=what)
    taken = [
        (weight, given)
        for weight in _WEIGHTS
        for given in (_INPUTS if purpose.rounds else ("",))
        if any(kernel.refusal(request) is None for request in _requests(purpose, weight, given))
    ]
    return KernelRow(
        name=kernel.name,
        what=what,
        device=purpose.device or "cpu and cuda",
        dtypes=purpose.dtypes,
        layers=purpose.layers,
        faster=purpose.faster,
        measured=purpose.measured,
        needs=purpose.needs,
        weights=tuple(dict.fromkeys(weight for weight, _ in taken)),
        inputs=tuple(dict.fromkeys(given for _, given in taken if given)),
        missing=kernel.missing() or (None if taken else "this processor has the instructions for none of its schemes"),
    )


def _requests(purpose: Purpose, weight: str, given: str) -> Iterator[Request]:
    """Yield what such a layer asks for in each type of inputs."""
    from fewbit.kernels import Request
    from fewbit.kernels.window import Window

    pair = (1, 1)
    window = Window(kernel=pair, stride=pair, dilation=pair, padding=((0, 0), (0, 0)), groups=1)
    for dtype in purpose.dtypes:
        yield Request(
            weight=parse_scheme(weight).stored_as("bfloat16"),
            input=parse_input_scheme(given) if given else None,
            device=purpose.device or "cpu",
            dtype=dtype,
            shape=_LAYER.shape,
            window=window if purpose.convolves else None,
        )


def tables() -> dict[str, Any]:
    """Return everything that `fewbit support` prints, as plain values."""
    from dataclasses import asdict

    return {
        "formats": [asdict(row) for row in formats()],
        "schemes": [asdict(row) for row in schemes()],
        "ranges": list(RANGES),
        "algorithms": list(ALGORITHMS),
        "transforms": list(TRANSFORMS),
        "corrections": list(CORRECTIONS),
        "frontends": {**{name: list(ALGORITHMS) for name in FRONTENDS}, "jax": _of_jax()},
        "presets": {name: f"{weight}, input {given}" if given else weight for name, (weight, given) in PRESETS.items()}
        | {name: f"GGUF types, most of them {kind}" for name, kind in GGUF_PRESETS.items()},
        "files": list(CHECKPOINTS),
        "kernels": [asdict(row) for row in kernels()],
    }


def _of_jax() -> list[str]:
    """Return the algorithms that work on JAX functions."""
    recipes = {name: Recipe([Rule(".*", weight="int4", algorithm=name)]) for name in ALGORITHMS}
    return [name for name, recipe in recipes.items() if not missing_here(recipe)]


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


def _shape(scheme: Scheme) -> tuple[int, int]:
    """Return the shape of the weight that a scheme is tried on."""
    out, width = _LAYER.shape
    return out, max(width, scheme.span or 1)


def _solves(name: str, text: str) -> bool:
    """Whether the algorithm quantizes to the scheme under one of its zero points; tried on a weight."""
    algorithm = lookup(ALGORITHMS, name, what="algorithm")()
    schemes = [_parsed(f"{text}{zero}") for zero in ("", " asym", " float-zero")]
    taken = next((own for own in schemes if own and problem_of(algorithm, own) is None), None)
    if taken is None:
        return False
    out, width = _shape(taken)
    weight = np.linspace(-1.0, 1.0, out * width, dtype=np.float32).reshape(out, width)
    return bool(np.isfinite(algorithm(weight, None, taken).qtensor.dequantize()).all())
