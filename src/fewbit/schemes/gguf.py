"""The block formats of GGUF as schemes: groups of 32 or 16, or spans of 256 whose scales are quantized too.

x' = scale * q, or scale * q + minimum; scales and minima are float16, or codes in units of a float16 for each 256
columns. Layouts: ggml's `ggml-common.h`; IQ4's table: `kvalues_iq4nl` there. MXFP4 and NVFP4 are microscaling schemes.
"""

from __future__ import annotations

from fewbit.catalogue import lookup
from fewbit.errors import SchemeError
from fewbit.formats.codebook import Codebook
from fewbit.formats.integer import Int
from fewbit.formats.number_format import NumberFormat
from fewbit.ranges.span_search import SpanSearch
from fewbit.schemes.block_formats import BLOCK_FORMATS
from fewbit.schemes.granularity import PerChannel, PerGroup, PerTensor
from fewbit.schemes.scheme import Scheme

#: Columns of a span whose scales are quantized.
_SPAN = 256

IQ4 = Codebook((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), "iq4")


def _plain(form: NumberFormat, *, minimum: bool = False) -> Scheme:
    """Return groups of 32 under a float16, and a float16 minimum."""
    return Scheme(
        format=form,
        granularity=PerGroup(32),
        symmetric=not minimum,
        minimum=minimum,
        scale_type="float16",
        range_method=SpanSearch(),
    )


def _nested(form: NumberFormat, size: int, scale: Int, *, minimum: bool = False) -> Scheme:
    """Return groups of `size` under integers in units of a float16 for each span, and minima likewise."""
    scales = Scheme(format=scale, granularity=PerGroup(_SPAN // size), scale_type="float16")
    return Scheme(
        format=form,
        granularity=PerGroup(size),
        symmetric=not minimum,
        minimum=minimum,
        scale_scheme=scales,
        range_method=SpanSearch(),
    )


Q4_0, Q5_0, Q8_0, IQ4_NL = _plain(Int(4)), _plain(Int(5)), _plain(Int(8)), _plain(IQ4)
Q4_1, Q5_1 = _plain(Int(4, signed=False), minimum=True), _plain(Int(5, signed=False), minimum=True)
Q2_K = _nested(Int(2, signed=False), 16, Int(4, signed=False), minimum=True)
Q3_K = _nested(Int(3), 16, Int(6))
Q4_K = _nested(Int(4, signed=False), 32, Int(6, signed=False), minimum=True)
Q5_K = _nested(Int(5, signed=False), 32, Int(6, signed=False), minimum=True)
Q6_K = _nested(Int(6), 16, Int(8))
IQ4_XS = _nested(IQ4, 32, Int(6))

#: Schemes by the word for them in notation.
GGUF_FORMATS = {
    name: f"fewbit.schemes.gguf:{name.upper()}"
    for name in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs")
}
#: GGUF's names of types, in its own order, with the words of notation.
KINDS = {name.upper(): name for name in (*GGUF_FORMATS, "mxfp4", "nvfp4")}
#: What takes the place of a type of spans of 256 columns in a layer of another width; the bits are about the same.
FALLBACKS = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl"}


def scheme_of(kind: str) -> Scheme:
    """Return the scheme of a GGUF type.

    >>> str(scheme_of("Q4_K"))
    'q4_k'

    Raises:
        SchemeError: GGUF types are `KINDS`; this is none of them.

    """
    if kind not in KINDS:
        raise SchemeError(f"GGUF type {kind!r:.40} has no scheme; those that have one are {', '.join(KINDS)}")
    found: Scheme = lookup({**GGUF_FORMATS, **BLOCK_FORMATS}, KINDS[kind], what="scheme", error=SchemeError)
    return found


def kind_of(scheme: Scheme) -> str | None:
    """Return the GGUF type that holds weights of `scheme` as they are, however their scales are found, or `None`.

    >>> from fewbit.schemes.notation import parse_scheme
    >>> kind_of(parse_scheme("mxfp4 mse")), kind_of(parse_scheme("int4 g128"))
    ('MXFP4', None)
    """
    return next((kind for kind in KINDS if _levels_of(scheme) == _levels_of(scheme_of(kind))), None)


def as_blocks(scheme: Scheme) -> Scheme:
    """Return the scheme of 32 numbers a scale that has the levels of one of integers, or `scheme` itself.

    A larger group is blocks of the same scale; with a zero point z a block has the minimum -z scale.

    >>> from fewbit.schemes.notation import parse_scheme
    >>> [str(as_blocks(parse_scheme(text))) for text in ("int4 g128", "int4 g64 asym", "int8 channel", "int3 g32")]
    ['q4_0', 'q4_1', 'q8_0', 'int3 g32']
    """
    whole = isinstance(scheme.format, Int) and scheme.format.signed and scheme.scale_scheme is None
    known = scheme.granularity in (PerTensor(), PerChannel())
    blocks = isinstance(scheme.granularity, PerGroup) and scheme.granularity.size % 32 == 0
    if not whole or scheme.float_zero or scheme.minimum or not (known or blocks):
        return scheme
    types = {(own.format.bits, own.symmetric): own for own in (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0)}
    return types.get((scheme.format.bits, scheme.symmetric), scheme)


def as_integers(scheme: Scheme) -> Scheme:
    """Return the scheme of integers under float scales that may have the levels of a block, or `scheme` itself.

    A scale in units of another is their product, which float32 holds; in place of a minimum there is a zero point; the
    16 levels of IQ4 are among the integers of 8 bits.

    >>> [str(as_integers(own)) for own in (Q4_0, Q5_1, Q4_K, Q6_K, IQ4_NL)]
    ['int4 g32', 'int5 g32 asym', 'int4 g32 asym', 'int6 g16', 'int8 g32']
    """
    inner, number = scheme.scale_scheme, scheme.format
    if isinstance(number, Codebook) and number.entries == IQ4.entries:
        number = Int(8)
    if not isinstance(number, Int) or not isinstance(scheme.range_method, SpanSearch):
        return scheme
    return Scheme(
        format=Int(number.bits),
        granularity=scheme.granularity,
        symmetric=not scheme.minimum,
        scale_type=scheme.scale_type if inner is None else "float32",
    )


def _levels_of(scheme: Scheme) -> tuple[object, ...]:
    """Return what decides which numbers a scheme can stand for."""
    inner = scheme.scale_scheme
    form = getattr(scheme.format, "narrow", False), scheme.format.name, scheme.format.levels
    return (
        form, scheme.granularity, scheme.symmetric, scheme.minimum, scheme.float_zero,
        scheme.scale_type if inner is None else (inner.format.name, inner.granularity, inner.scale_type),
    )  # fmt: skip
