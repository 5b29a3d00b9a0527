"""The grids of GGUF under GPTQ: all parameters of a span are chosen when the loop comes to its first column.

They are those of least sum over columns of (w_k - q_k)^2 / U_kk^2 for the weights as they are then. In the end the
floats of the grid are fitted to the codes: q = d a + m b is linear in what is stored as float16, span by span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewbit import spans
from fewbit.algorithms.scale_fit import fitted_scales
from fewbit.numerics.groups import spread
from fewbit.qtensor import QTensor, of_spans
from fewbit.schemes.scheme import Scheme

#: Stands for a scale of 0, which nothing can be divided by; beside any weight it is as good as 0.
_NOTHING = 1e-20


def chosen_span(working: Tensor, columns: Tensor, weights: Tensor | None, scheme: Scheme) -> QTensor:
    """Return `working` (out, span) rounded to nearest under the best parameters, columns as they come.

    `columns` (span,) are what its columns, and their `weights`, are in the weight.
    """
    place = columns.argsort()
    return of_spans(spans.searched(working[:, place], scheme, None if weights is None else weights[place]), scheme)


def scale_and_zero(stored: QTensor) -> tuple[Tensor, Tensor]:
    """Return scales that can be divided by and where 0 lies between the codes, both (out, groups)."""
    scale: Tensor = stored.scale_values()
    scale = torch.where(scale == 0, torch.full_like(scale, _NOTHING), scale)
    minimum = stored.minimum_values()
    return scale, torch.zeros_like(scale) if minimum is None else -minimum / scale


def joined(parts: Sequence[QTensor]) -> QTensor:
    """Return the spans of a weight, from left to right, as one."""
    first = parts[0]

    def together(name: str) -> Tensor | QTensor | None:
        own = [getattr(part, name) for part in parts]
        if own[0] is None:
            return None
        return joined(own) if isinstance(own[0], QTensor) else torch.cat(own, dim=1)

    return replace(first, codes=together("codes"), scale=together("scale"), minimum=together("minimum"))


def with_fitted_floats(weight: Tensor, stored: QTensor, moment: Tensor) -> QTensor:
    """Return `stored` with the float16 numbers of least output error for its codes, in the rows that gain by it."""
    span, shape = stored.scheme.span, stored.shape
    assert span is not None
    off = weight - stored.dequantize()
    gradient, parts = off @ moment, [stored.scale] if stored.minimum is None else [stored.scale, stored.minimum]
    bases, floats = [], []
    for part, values in zip(parts, (stored.scheme.format.decode(stored.codes), torch.ones_like(weight)), strict=False):
        nested = part.scheme.format.decode(part.codes) if isinstance(part, QTensor) else torch.ones_like(part)
        bases.append(values * spread(nested, shape, stored.scheme.granularity.box(shape)))
        floats.append(_floats(part))
    count = len(parts)
    # Both kinds of floats at once: as if the weight had its columns twice.
    found = fitted_scales(
        gradient.repeat(1, count), torch.cat(bases, 1), moment.repeat(count, count), span, torch.cat(floats, 1)
    )
    rounded = found.to(torch.float16).float()
    kept = torch.where(torch.isfinite(rounded), rounded, torch.cat(floats, 1)).chunk(count, 1)
    moved = [
        replace(part, scale=own) if isinstance(part, QTensor) else own for part, own in zip(parts, kept, strict=True)
    ]
    trial = replace(stored, scale=moved[0], minimum=moved[1] if count > 1 else None)
    left = weight - trial.dequantize()
    better = ((left @ moment) * left).sum(1) < (gradient * off).sum(1)
    return _rows_of(trial, stored, better[:, None])


def _floats(part: Tensor | QTensor) -> Tensor:
    """Return the float16 numbers of scales or minima, as float32."""
    floats: Any = part.scale if isinstance(part, QTensor) else part
    return floats  # type: ignore[no-any-return]


def _rows_of(one: QTensor, other: QTensor, rows: Tensor) -> QTensor:
    """Return the floats of `one` where `rows` (out, 1) says so, else those of `other`; their codes are the same."""

    def mixed(a: Tensor | QTensor | None, b: Tensor | QTensor | None) -> Tensor | QTensor | None:
        if isinstance(a, QTensor) and isinstance(b, QTensor):
            return replace(a, scale=torch.where(rows, _floats(a), _floats(b)))
        return None if a is None else torch.where(rows, a, b)  # type: ignore[arg-type]

    return replace(one, scale=mixed(one.scale, other.scale), minimum=mixed(one.minimum, other.minimum))
