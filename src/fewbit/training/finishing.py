"""From a trained model with quantizers to a quantized one: the codes are those that its last forward ran on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fewbit.algorithms.solution import Solution
from fewbit.biases import with_integer_bias
from fewbit.clock import Clock
from fewbit.errors import FewbitError
from fewbit.evaluation.side_by_side import Measured, measure
from fewbit.frontends.torch.norm_folding import NormFold
from fewbit.interfaces import Activations, Silent, frontend_of
from fewbit.measurement import parse_evaluation
from fewbit.plan_row import PlanRow
from fewbit.qtensor import QTensor
from fewbit.reporting import remarks_of, report_of
from fewbit.result import Result
from fewbit.solved import Solved
from fewbit.training.prepared import INPUT, OUTPUT, Prepared, prepared
from fewbit.transforms.batchnorm import folded


def finish(model: nn.Module, evaluation: Any) -> Result:
    """Do what `fewbit.finish_qat` says."""
    work, frontend, clock = prepared(model), frontend_of("torch"), Clock()
    given = parse_evaluation(evaluation)
    evaluated, name = given.opened(model, frontend) if given else ((), None)
    codes = {row.layer.name: _codes(work, row) for row in work.rows}
    operands = work.products
    work.remove()
    _fold(work)
    made = work.asked(model, next(iter(evaluated), work.batch))
    frontend.require_finite(model, [own.layer for own in made.quantized], made.float_names, made.storage_type)
    solved = {row.layer.name: _solved(model, row, *codes[row.layer.name]) for row in made.rows if row.scheme}
    products = [row.layer for row in made.rows if row.layer.kind == "attention"]
    forms = [
        *(own.replacement for own in solved.values()),
        *frontend.product_forms(model, products, operands),
    ]
    changed = frontend.round_floats(model, made.float_names, made.storage_type)
    measured = measure(model, forms, evaluated, frontend, Silent()) if evaluated else Measured()
    for form in forms:
        form.install()
    report = report_of(made, solved, measured, frontend, model, {})
    report = replace(
        report,
        remarks=(*work.sentences, *remarks_of(changed, solved, made, idle=False)),
        text=name,
        seconds=clock.seconds,
        peak_memory=clock.peak_memory,
    )
    batches = evaluated if work.batch is None else [work.batch]
    example = next(iter(batches), None)
    return Result(
        model=model, plan=made, report=report, source=work.asked.source, batches=tuple(batches), example=example
    )


@torch.no_grad()
def _codes(work: Prepared, row: PlanRow) -> tuple[QTensor, Activations]:
    """Return the codes of a layer's weight, and how its input and output are rounded."""
    both = {name: work.activation(row, name) for name in (INPUT, OUTPUT)}
    rounding = {name: None if own is None else own.activation for name, own in both.items()}
    qtensor = work.quantizer(row).qtensor(work.trained(row))
    return qtensor, Activations(input=rounding[INPUT], output=rounding[OUTPUT])


def _fold(work: Prepared) -> None:
    """Fold each BatchNorm into the layer before it."""
    for pair in work.pairs:
        NormFold(work.model, pair, folded).apply()


def _solved(model: nn.Module, row: PlanRow, qtensor: QTensor, activations: Activations) -> Solved:
    frontend = frontend_of("torch")
    weight = frontend.weight(model, row.layer)
    solution, bias = Solution(qtensor), None
    if row.bias == "int32":
        try:
            solution, bias = with_integer_bias(solution, weight, frontend.bias(model, row.layer), activations)
        except FewbitError as error:
            raise type(error)(f"{row.layer.name}: {error}") from error
    replacement = frontend.replacement(model, row.layer, solution.qtensor, activations, bias)
    return Solved.of(weight, solution, replacement, activations)
