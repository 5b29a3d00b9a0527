"""How the products inside attention are rounded: each time by their own ranges, or by some that are fixed here.

A fixed range is that of what the quantized layers before a product put out, while no product is rounded yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fewbit.activation import Activation
from fewbit.errors import CalibrationError, FewbitError
from fewbit.interfaces import Forms, Frontend, Switch
from fewbit.plan_row import PlanRow
from fewbit.planning import Plan
from fewbit.static_ranges import UNREACHED


def round_products(
    model: Any, made: Plan, quantized: Sequence[Forms], frontend: Frontend, batches: Sequence[Any]
) -> Sequence[Forms]:
    """Return the rounded forms of a plan's products; the float forms of all layers are installed before and after.

    Raises:
        CalibrationError: no calibration input reached one that is to have a fixed range.

    """
    rows = {row.layer.name: row for row in made.rounded_products}
    if not rows:
        return ()
    products = [row.layer for row in made.rows if row.layer.kind == "attention"]
    wanted = {
        name: row.input.ranging.statistic
        for name, row in rows.items()
        if row.input and row.input.static and row.input.ranging.statistic
    }
    seen: Mapping[str, Mapping[str, Any]] = {}
    if wanted:
        with installed(quantized):
            seen = frontend.product_statistics(model, products, wanted, batches)
    activations = {
        name: {operand: _activation(row, operand, seen.get(name, {})) for operand in row.layer.operands}
        for name, row in rows.items()
    }
    return frontend.product_forms(model, products, activations)


@contextmanager
def installed(forms: Sequence[Switch]) -> Iterator[None]:
    """Put quantized forms into the model while the block runs."""
    for form in forms:
        form.install()
    try:
        yield
    finally:
        for form in forms:
            form.restore()


def _activation(row: PlanRow, operand: str, seen: Mapping[str, Any]) -> Activation:
    assert row.input is not None
    if not row.input.static:
        return Activation(scheme=row.input)
    if row.input.ranging.statistic and operand not in seen:
        raise CalibrationError(f"{row.layer.name}: {UNREACHED}")
    try:
        return Activation.calibrated(row.input, seen.get(operand))
    except FewbitError as error:
        raise type(error)(f"{row.layer.name}.{operand}: {error}") from error
