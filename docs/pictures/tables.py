"""The tables of docs/numerics.md that are computed."""

from __future__ import annotations

from collections.abc import Iterable
from math import log2

import numpy as np
from measured import ONE_LEVEL, TRUNCATED, decibels

from fewbit.catalogue import lookup
from fewbit.formats import FORMATS
from fewbit.formats.minifloat import Float
from fewbit.qtensor import quantize
from fewbit.schemes.block_formats import MXFP4, NVFP4
from fewbit.schemes.notation import parse_scheme
from samples import QUANTILES, drawn

COSTS = (
    "int8 channel", "int4 channel", "int4 g128", "int4 g64", "int4 g32", "int4 g64 asym", "int4 g64 float-zero",
    "nf4 g64", "nf4-double", "mxfp4", "nvfp4", "int3 g64", "int2 g64 asym", "ternary g64", "binary g64",
)  # fmt: skip
FLOATS = ("e5m2", "e4m3", "e4m3fnuz", "e3m4", "e3m2", "e2m3", "e2m1")
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
METHODS = ("", "mse", "lsq", "asym", "asym mse", "asym lsq", "float-zero", "float-zero lsq")


def costs() -> str:
    """Return bits a weight, and the signal to noise that they buy."""
    rows = [("scheme", "bits a weight", *(f"{kind}, dB" for kind in QUANTILES))]
    values = [drawn(kind, (128, 1024)) for kind in QUANTILES]
    for text in COSTS:
        scheme = parse_scheme(text)
        bits = scheme.bits_per_weight((4096, 4096))
        rows.append((f"`{text}`", f"{bits:.3f}", *(f"{decibels(part, scheme):.1f}" for part in values)))
    return table(rows)


def floats() -> str:
    """Return small floats in figures."""
    rows = [("format", "bias", "specials", "largest", "least normal", "least", "levels", "octaves")]
    for name in FLOATS:
        form = lookup(FORMATS, name, what="number format")
        assert isinstance(form, Float)
        least = form.magnitudes[1]
        figures = (form.bias, form.specials, f"{form.maximum:g}", _power(form.smallest_normal), _power(least))
        octaves = f"{log2(form.maximum / least):.1f}"
        rows.append((f"`{name}`", *(str(figure) for figure in figures), str(len(form.levels)), octaves))
    return table(rows)


def levels() -> str:
    """Return the signal to noise of scales of one and of two levels by the magnitude of the weights."""
    rows = [("normal weights of rms", "1", "0.001", "0.000001")]
    schemes = (
        ("`nvfp4`: e4m3 under one float32", NVFP4),
        ("e2m1 g16, e4m3 alone", ONE_LEVEL),
        ("`mxfp4`: power of two", MXFP4),
        ("`mxfp4` by the specification's example", TRUNCATED),
    )
    for words, scheme in schemes:
        found = (decibels(drawn("normal") * np.float32(rms), scheme) for rms in (1.0, 1e-3, 1e-6))
        rows.append((words, *(f"{value:.1f} dB" for value in found)))
    return table(rows)


def ranges() -> str:
    """Return squared errors of range methods relative to asymmetric minmax."""
    rows = [("", *(f"`{method}`" if method else "symmetric" for method in METHODS))]
    for bits in (4, 3, 2):
        for kind in QUANTILES:
            errors = [_error(drawn(kind), f"int{bits} g64 {method}") for method in METHODS]
            shares = [f"{error / errors[METHODS.index('asym')]:.3f}" for error in errors]
            rows.append((f"{bits} bits, {kind}", *shares))
    return table(rows)


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows as Markdown, the first as the heading, figures to the right."""
    head, *body = rows
    rule = ("---", *("---:" for _ in head[1:]))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *body))


def _power(value: float) -> str:
    """Return a power of two as one."""
    return f"2{f'{log2(value):.0f}'.translate(RAISED)}"


def _error(values: np.ndarray, text: str) -> float:
    difference = quantize(values, parse_scheme(text)).dequantize() - values
    return float(np.mean(difference.astype(np.float64) ** 2))


#: Name, and what makes the table.
TABLES = {"costs": costs, "floats": floats, "levels": levels, "ranges": ranges}
