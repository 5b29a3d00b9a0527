"""Adapters put into the weights that they hang beside: Q(W) + (alpha / r) B A, rounded again to the layer's scheme.

How far the change lies above that rounding, 10 log10(|sBA|^2 / |Q(W + sBA) - (W + sBA)|^2), is what the report says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewbit.algorithms.nearest import Nearest
from fewbit.algorithms.solution import Solution
from fewbit.biases import with_integer_bias
from fewbit.clock import Clock
from fewbit.errors import FewbitError
from fewbit.evaluation.fidelity import decibels
from fewbit.evaluation.side_by_side import Measured, measure
from fewbit.frontends.torch.low_rank import ADAPTER, LowRank
from fewbit.frontends.torch.quantized import QuantizedLinear
from fewbit.interfaces import Activations, Silent, frontend_of
from fewbit.measurement import parse_evaluation
from fewbit.numerics.groups import beside_boxes, merge, split
from fewbit.plan_row import PlanRow
from fewbit.qtensor import QTensor
from fewbit.reporting import remarks_of, report_of
from fewbit.result import Result
from fewbit.shared_scales import SharedScales, under
from fewbit.solved import Solved
from fewbit.training.adapting import Adapted, adapted, require_finite
from fewbit.training.trained import Trained


@dataclass(frozen=True, slots=True)
class _Merged:
    """A layer that is rounded again."""

    solved: Solved
    #: Whether it had an adapter, which is in its weight now.
    adapted: bool
    #: How far the change lies above the rounding, in dB; `None` where nothing was changed.
    kept: float | None


def merged(model: Any, evaluation: Any) -> Result:
    """Do what `fewbit.merge_adapters` says."""
    work, frontend, clock = adapted(model), frontend_of("torch"), Clock()
    require_finite(model)
    given = parse_evaluation(evaluation)
    evaluated, name = given.opened(model, frontend) if given else ((), None)
    rows = _rows(work)
    shared = SharedScales(work.plan.rows, lambda layer: _weight(_module(work, layer.name)))
    found = {row.layer.name: _merged(work, row, shared) for row in rows}
    forms = [own.solved.replacement for own in found.values()]
    measured = measure(model, forms, evaluated, frontend, Silent()) if evaluated else Measured()
    for form in forms:
        form.install()
    solved = {name: own.solved for name, own in found.items()}
    made = replace(work.plan, rows=tuple(_trained(row, found) for row in work.plan.rows))
    notes = {
        name: (f"adapter {_said(own.kept)} above its rounding",) for name, own in found.items() if own.kept is not None
    }
    report = replace(
        report_of(made, solved, measured, frontend, model, notes),
        remarks=(_sentence(found), *remarks_of(0, solved, made, idle=False)),
        text=name,
        seconds=clock.seconds,
        peak_memory=clock.peak_memory,
    )
    work.remove()
    example = next(iter(evaluated), None)
    return Result(model=model, plan=made, report=report, source=work.source, batches=tuple(evaluated), example=example)


def _rows(work: Adapted) -> list[PlanRow]:
    """Return the rows of what is rounded again: layers with adapters, and those that share a global scale with them."""
    named = {row.layer.name: row for row in work.plan.rows}
    own = [name for name in named if named[name].scheme and _adapter(_module(work, name)) is not None]
    wanted = {other for name in own for other in (name, *named[name].fused)}
    return [row for name, row in named.items() if name in wanted]


def _module(work: Adapted, name: str) -> Any:
    return work.model.get_submodule(name)


def _adapter(module: Any) -> LowRank | None:
    found = module._modules.get(ADAPTER)
    return found if isinstance(found, LowRank) else None


def _weight(module: QuantizedLinear) -> Tensor:
    """Return the weight (out, in) that a layer and its adapter stand for."""
    adapter = _adapter(module)
    own: Tensor = module.qtensor.dequantize()
    return own if adapter is None else own + adapter.change()


@torch.no_grad()
def _merged(work: Adapted, row: PlanRow, shared: SharedScales) -> _Merged:
    assert row.scheme is not None
    name, frontend = row.layer.name, frontend_of("torch")
    module = _module(work, name)
    weight, adapter = _weight(module), _adapter(module)
    activations = Activations(input=None if module.input is None else module.input.activation)
    bias = None
    try:
        solution: Solution = under(Nearest()(weight, None, shared.scheme(row)), row.scheme)
        solution = replace(solution, qtensor=_nearer(weight, module.qtensor, solution.qtensor))
        if module.integer_bias is not None:
            solution, bias = with_integer_bias(solution, weight, module.bias, activations)
    except FewbitError as error:
        raise type(error)(f"{name}: {error}") from error
    replacement = frontend.replacement(work.model, row.layer, solution.qtensor, activations, bias)
    change = 0.0 if adapter is None else _power(adapter.change())
    kept = decibels(change, _power(solution.qtensor.dequantize() - weight)) if change else None
    return _Merged(Solved.of(weight, solution, replacement, activations), adapter is not None, kept)


def _nearer(weight: Tensor, before: QTensor, after: QTensor) -> QTensor:
    """Return `after`, but groups by the scales that they had before where that is nearer to the weight.

    The scale of integers that were rounded is not found again from what they stand for: 7 steps are their largest, and
    the range is one of 7.5.
    """
    scheme = after.scheme
    if not scheme.has_range or scheme.learned or before.scheme != scheme:
        return after
    shape = (weight.shape[0], weight.shape[1])
    box = scheme.granularity.box(shape)
    boxes = split(weight, box)
    zeros: Any = before.zero_point
    zero = None if zeros is None else beside_boxes(zeros).float()
    codes = scheme.grid.codes(boxes, beside_boxes(before.scale_values()), zero)
    own = replace(before, codes=merge(codes, shape))
    errors = [split((found.dequantize() - weight).square(), box).sum((1, 3)) for found in (own, after)]
    stays = errors[0] <= errors[1]
    everywhere = merge(beside_boxes(stays).expand_as(boxes), shape)
    return replace(
        after,
        codes=torch.where(everywhere, own.codes, after.codes),
        scale=torch.where(stays, own.scale_values(), after.scale_values()),
        zero_point=None if zeros is None else torch.where(stays, zeros, after.zero_point),  # type: ignore[arg-type]
    )


def _power(values: Tensor) -> float:
    return float(values.double().square().sum())


def _trained(row: PlanRow, merged: dict[str, _Merged]) -> PlanRow:
    return replace(row, algorithm=Trained("low-rank")) if row.layer.name in merged else row


def _said(ratio: float) -> str:
    return f"{round(ratio, 1) + 0.0:.1f} dB"  # no -0.0


def _sentence(merged: dict[str, _Merged]) -> str:
    """Return what the report says of all of them."""
    count = sum(own.adapted for own in merged.values())
    kept = {name: own.kept for name, own in merged.items() if own.kept is not None}
    if not kept:
        return f"adapters of {count} layers were merged, none of which changes anything"
    least = min(kept, key=lambda name: kept[name])
    beside = len(merged) - count
    return (
        f"adapters of {count} layers were merged and rounded again: what they change lies {_said(kept[least])} "
        f"({least}) to {_said(max(kept.values()))} above that rounding"
        + (f"; {beside} that share a global scale with them were rounded again" if beside else "")
    )
