"""Casts that would overflow: such a layer stays float, and plan and report say by which number.

Kept where max |w|, or on the data at hand max |x| or max |y|, exceeds the largest number of the cast, 65504 of fp16.
The output counts where it is cast, and where weight and input are, since the layer then computes in that type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from fewbit.formats.cast import Cast
from fewbit.interfaces import BYTES, Frontend, Layer
from fewbit.plan_row import PlanRow
from fewbit.planning import UNTIED, Plan
from fewbit.problems import several
from fewbit.schemes.scheme import Scheme


def without_large_weights(made: Plan, frontend: Frontend, model: Any) -> Plan:
    """Return the plan with layers kept whose weights their cast would overflow, as far as `model` has numbers."""
    casts = {row.layer: cast for row in made.rows if (cast := _ending(row.scheme))}
    largest = {layer: frontend.largest_weight(model, layer) for layer in casts}
    found = {
        layer.name: _sentence("weights reach", own, casts[layer])
        for layer, own in largest.items()
        if own is not None and own > casts[layer].largest
    }
    unread = [layer.name for layer, own in largest.items() if own is None]
    if unread:
        hint = f"{several(unread)}: kept float if its weights overflow the cast, which shows when they are read"
        made = replace(made, hints=(*made.hints, hint))
    return _keeping(made, found)


def without_large_activations(
    made: Plan, frontend: Frontend, model: Any, batches: Sequence[Any]
) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan with layers kept whose inputs or outputs overflow on `batches`, and what was not checked."""
    watched = {row.layer: _ends(row) for row in made.rows if any(_ends(row))}
    if not watched:
        return made, ()
    seen = _largest(frontend, model, list(watched), batches) if batches else {}
    found: dict[str, str] = {}
    for layer, ends in watched.items():
        words = "operands reach" if layer.kind == "attention" else "inputs reach", "outputs reach"
        for what, largest, cast in zip(words, seen.get(layer.name, (0.0, 0.0)), ends, strict=True):
            if cast and largest > cast.largest:
                found.setdefault(layer.name, _sentence(what, largest, cast))
    made, unseen = _keeping(made, found), [layer.name for layer in watched if layer.name not in seen]
    if not unseen:
        return made, ()
    why = "no batch came there" if batches else "there was no data; give calibration or evaluation batches"
    return made, (f"{several(unseen)}: inputs and outputs were not checked for overflow, {why}",)


def needs_check(made: Plan) -> bool:
    """Whether data would tell of inputs or outputs that overflow."""
    return any(any(_ends(row)) for row in made.rows)


def _largest(
    frontend: Frontend, model: Any, layers: Sequence[Layer], batches: Sequence[Any]
) -> dict[str, tuple[float, float]]:
    """Return the largest magnitudes of what goes in and comes out; of products inside attention those of operands."""
    plain = [layer for layer in layers if layer.kind != "attention"]
    products = [layer for layer in layers if layer.kind == "attention"]
    found = dict(frontend.largest_activations(model, plain, batches)) if plain else {}
    wanted = {product.name: "extremes" for product in products}
    seen = frontend.product_statistics(model, products, wanted, batches) if products else {}
    for name, operands in seen.items():
        ends = [own.result() for own in operands.values()]
        found[name] = max(float(end) for low, high in ends for end in (-low[0], high[0])), 0.0
    return found


def _ending(scheme: Scheme | None) -> Cast | None:
    """Return the cast of `scheme`, if it is one that ends far below float32."""
    cast = scheme.format if scheme else None
    return cast if isinstance(cast, Cast) and cast.overflows else None


def _ends(row: PlanRow) -> tuple[Cast | None, Cast | None]:
    """Return the casts that the input and the output of a layer go through."""
    computes = row.scheme if row.scheme == row.input else None
    return _ending(row.input), _ending(row.output) or _ending(computes)


def _sentence(what: str, largest: float, cast: Cast) -> str:
    return f"its {what} {largest:,.6g}, and {cast.name} ends at {cast.largest:,.0f}"


def _keeping(made: Plan, reasons: Mapping[str, str]) -> Plan:
    """Return the plan with the layers called in `reasons` left float."""
    if not reasons:
        return made
    float_already = {row.layer.name for row in made.rows if not row.scheme}
    rows = []
    for row in made.rows:
        name = row.layer.name
        if name not in reasons:
            rows.append(row)
            continue
        whole = prod(row.layer.shape) * BYTES[made.storage_type]
        rows.append(_kept(row, reasons[name], 0 if float_already & set(row.layer.tied) else whole))
        float_already.add(name)
    first = next(iter(reasons.values()))
    return replace(made, rows=tuple(rows), adaptations=(*made.adaptations, f"{several(reasons)}: kept float, {first}"))


def _kept(row: PlanRow, reason: str, nbytes: int) -> PlanRow:
    return replace(
        row,
        scheme=None,
        algorithm=None,
        input=None,
        output=None,
        bias="float",
        bytes_after=nbytes,
        notes=(*(note for note in row.notes if note != UNTIED), f"kept float: {reason}"),
        overflow=reason,
    )
