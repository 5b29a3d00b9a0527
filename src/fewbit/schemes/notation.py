"""The text notation of schemes, parsed and printed here and nowhere else.

text = FORMAT [GRANULARITY] [narrow] [sym | asym | float-zero] [static] [RANGE], words in any order after the format,
or the name of a whole scheme: mxfp4, nvfp4, ..., which takes RANGE mse or lsq (nvfp4 of inputs static), and fp16,
bf16. GRANULARITY is tensor, channel, channel:1, channel:0x4, g64, tile128x128 or token. What is left out is the usual:
of weights `g128` for 4 bits and fewer, else `channel`, symmetric; of inputs `token`, or `tensor` when static, and
asymmetric for integers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from fewbit.catalogue import lookup, unknown
from fewbit.errors import SchemeError
from fewbit.formats import FORMATS, LEARNED
from fewbit.formats.integer import Int
from fewbit.formats.learned import Learned
from fewbit.formats.number_format import NumberFormat
from fewbit.ranges import RANGES
from fewbit.schemes.block_formats import BLOCK_FORMATS
from fewbit.schemes.casts import CASTS
from fewbit.schemes.gguf import GGUF_FORMATS
from fewbit.schemes.granularity import Granularity, PerChannel, PerGroup, PerTensor, PerTile, PerToken
from fewbit.schemes.scheme import Scheme

#: Whole schemes by name.
WHOLE = {**BLOCK_FORMATS, **GGUF_FORMATS, **CASTS}
_SYMMETRIES = ("sym", "asym", "float-zero")
#: Range methods that try levels of scales which are quantized themselves.
_SEARCHES = ("mse", "lsq")
#: Characters of a scheme.
_LONGEST = 200
_FLAGS = ("narrow", "static", *_SYMMETRIES, "tensor", "channel", "gN", "tileNxM", "token")


def parse_scheme(text: str) -> Scheme:
    """Return the scheme that `text` spells.

    >>> parse_scheme("int4 g64 asym").granularity
    PerGroup(size=64)

    Raises:
        SchemeError: a word that is unknown, given twice, or that does not fit the format.

    """
    return _parsed(text, _usual_of_weights)


def parse_input_scheme(text: str) -> Scheme:
    """Return the scheme that `text` spells for the input or output of a layer.

    >>> str(parse_input_scheme("int8")), str(parse_input_scheme("e4m3 static"))
    ('int8 token asym', 'e4m3 tensor static')

    Raises:
        SchemeError: as `parse_scheme`.

    """
    return _parsed(text, _usual_of_inputs)


def _parsed(text: str, usual: Callable[[NumberFormat, bool], tuple[Granularity, bool]]) -> Scheme:
    head, *rest = _words(text)
    if head in WHOLE:
        return _whole(head, rest)
    named = {**FORMATS, **LEARNED}
    if head not in named:
        raise SchemeError(unknown(head, [*named, *WHOLE], what="number format"))
    number_format: NumberFormat = lookup(named, head, what="number format")
    granularities = [found for word in rest if (found := _granularity(word))]
    methods = [word for word in rest if word in RANGES]
    _at_most_one(text, "granularities", [granularity.name for granularity in granularities])
    _at_most_one(text, "range methods", methods)
    _at_most_one(text, "symmetries", [word for word in rest if word in _SYMMETRIES])
    for flag in ("narrow", "static"):
        _at_most_one(text, f"times {flag}", [word for word in rest if word == flag])
    for word in rest:
        if not (word in RANGES or word in ("narrow", "static", *_SYMMETRIES) or _granularity(word)):
            raise SchemeError(unknown(word, [*_FLAGS, *RANGES], what=f"word in scheme {text!r}:"))
    granularity, symmetric = usual(number_format, "static" in rest)
    if set(_SYMMETRIES) & set(rest):
        symmetric = "sym" in rest
    return Scheme(
        format=_narrow(number_format) if "narrow" in rest else number_format,
        granularity=granularities[0] if granularities else granularity,
        symmetric=symmetric,
        float_zero="float-zero" in rest,
        static="static" in rest,
        range_method=lookup(RANGES, methods[0], what="range method")() if methods else None,
    )


def _whole(name: str, further: list[str]) -> Scheme:
    """Return a whole scheme, its scales searched or their unit fixed if a word says so."""
    scheme: Scheme = lookup(WHOLE, name, what="scheme", error=SchemeError)
    if not further:
        return scheme
    if further == ["static"] and scheme.has_unit:
        return replace(scheme, static=True)
    searched = scheme.scaled and scheme.span is None
    if not searched or len(further) > 1 or further[0] not in _SEARCHES:
        *words, last = (*_SEARCHES, "static") if scheme.has_unit else _SEARCHES
        takes = f"one further word, {', '.join(words)} or {last}" if searched else "no further word"
        raise SchemeError(f"{name} is a whole scheme and takes {takes}; drop {' '.join(further)!r}")
    return replace(scheme, range_method=lookup(RANGES, further[0], what="range method")())


def _words(text: str) -> list[str]:
    if not isinstance(text, str):
        raise SchemeError(f"a scheme is text such as 'int4 g64', not {text!r:.80}")
    if len(text) > _LONGEST:
        raise SchemeError(
            f"a scheme of {len(text)} characters, beginning {text[:40]!r}; none needs more than {_LONGEST}"
        )
    words = text.split()
    if not words:
        raise SchemeError("an empty scheme; write for example 'int4 g64' or 'int8 channel'")
    return words


def scheme_to_text(scheme: Scheme) -> str:
    """Return the notation of `scheme`, which `parse_scheme` reads back.

    The type of the scale, options of a range method (`Percentile(99.0)` prints `percentile`) and scales quantized in
    a way of one's own have no notation; a number format outside the catalogue prints a name that does not parse.

    >>> scheme_to_text(parse_scheme("int4"))
    'int4 g128'
    """
    for name in _wholes_like(scheme):
        whole = lookup(WHOLE, name, what="scheme")
        if scheme == whole:
            return name
        if scheme.fixes_unit and scheme == replace(whole, static=whole.has_unit):
            return f"{name} static"
        if scheme.scaled and scheme.span is None and scheme == replace(whole, range_method=scheme.range_method):
            return f"{name} {scheme.ranging.name}"
    words = [scheme.format.name]
    if getattr(scheme.format, "narrow", False):
        words.append("narrow")
    words.append(scheme.granularity.name)
    if not scheme.symmetric:
        words.append("float-zero" if scheme.float_zero else "minimum" if scheme.minimum else "asym")
    if scheme.static:
        words.append("static")
    if scheme.span is not None or scheme.ranging != replace(scheme, range_method=None).ranging:
        words.append(scheme.ranging.name)
    return " ".join(words)


def _wholes_like(scheme: Scheme) -> Iterable[str]:
    """Return the names of whole schemes that may be that of `scheme`."""
    if not scheme.scaled:
        return CASTS
    if scheme.span is not None:
        return GGUF_FORMATS
    return BLOCK_FORMATS if scheme.scale_scheme is not None else ()


def input_scheme_to_text(scheme: Scheme) -> str:
    """Return the notation of the scheme of an input, which `parse_input_scheme` reads back.

    >>> input_scheme_to_text(parse_input_scheme("int8 sym"))
    'int8 token sym'
    """
    text = scheme_to_text(scheme)
    if not scheme.symmetric or text in WHOLE or _usual_of_inputs(scheme.format, scheme.static)[1]:
        return text
    granularity = scheme.granularity.name
    return text.replace(f" {granularity}", f" {granularity} sym", 1)


def _at_most_one(text: str, what: str, words: list[str]) -> None:
    if len(words) > 1:
        raise SchemeError(f"scheme {text!r} names two {what}, {words[0]} and {words[1]}; drop one")


def _granularity(word: str) -> Granularity | None:
    if match := re.fullmatch(r"g([0-9]{1,6})", word):
        return PerGroup(int(match[1]))
    if match := re.fullmatch(r"tile([0-9]{1,6})x([0-9]{1,6})", word):
        return PerTile(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"channel:([0-9])(?:x([0-9]{1,6}))?", word):
        return PerChannel(int(match[1]), int(match[2] or 1))
    simple: dict[str, Granularity] = {"tensor": PerTensor(), "channel": PerChannel(), "token": PerToken()}
    return simple.get(word)


def _usual_of_weights(number_format: NumberFormat, static: bool) -> tuple[Granularity, bool]:  # noqa: ARG001
    """Return granularity and symmetry."""
    few = number_format.bits <= 4 and not isinstance(number_format, Learned)
    return (PerGroup(128) if few else PerChannel()), True


def _usual_of_inputs(number_format: NumberFormat, static: bool) -> tuple[Granularity, bool]:
    """Return granularity and symmetry; asymmetric int8 halves the error of symmetric on a language model's inputs."""
    if isinstance(number_format, Learned):
        raise SchemeError(
            f"{number_format.name} learns levels of weights, which inputs and outputs do not have; use int8"
        )
    return (PerTensor() if static else PerToken()), not isinstance(number_format, Int)


def _narrow(number_format: NumberFormat) -> NumberFormat:
    if not isinstance(number_format, Int):
        raise SchemeError(f"{number_format.name} has no narrow range; only integers do")
    return replace(number_format, narrow=True)
