"""What becomes of a layer's bias once its weight is rounded: corrected, in int32, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fewbit.algorithms.solution import Solution
from fewbit.corrections.bias import mean_products
from fewbit.integer_bias import IntegerBias, make_room, quantize_bias
from fewbit.interfaces import Activations
from fewbit.numerics.namespace import Array, array_namespace
from fewbit.plan_row import PlanRow
from fewbit.statistics.mean import Mean

#: What is not measured, among statistics by name.
BATCHNORM = "batchnorm"
#: Why there are no means, by whether BatchNorms were to tell them.
_UNKNOWN = ("no calibration input reached it", "no BatchNorm tells the means of its input")


def needs_bias(row: PlanRow) -> bool:
    """Whether the bias of a layer becomes another one."""
    return row.bias == "int32" or bool(row.corrections)


def corrected(
    row: PlanRow, solution: Solution, given: Mapping[str, Any], wanted: Mapping[str, Any]
) -> tuple[Array | None, tuple[str, ...]]:
    """Return the bias (out,) by the row's corrections, `None` where there are none, and what fell back.

    `given` has statistics of the layer's input by name, `wanted` those of its output in the float model; under
    `BATCHNORM` what BatchNorms tell of both.
    """
    bias = None
    for correction in row.corrections:
        name = correction.statistic or BATCHNORM
        seen, float_output = given.get(name), wanted.get(name)
        if seen is None or not seen.count or float_output is None or not float_output.count:
            return None, (f"{_UNKNOWN[correction.statistic is None]}: correction {correction.name} is left out",)
        bias = correction(solution.qtensor.dequantize(), seen, float_output)
    return bias, ()


def known_output(weight: Array, bias: Array, given: Mean) -> Mean:
    """Return the means of the outputs of the float layer, by those of its inputs."""
    products = mean_products(weight, given)
    return Mean(products + array_namespace(products).astype(bias, products.dtype), 1)


def with_integer_bias(
    solution: Solution, weight: Array, bias: Array, activations: Activations
) -> tuple[Solution, IntegerBias]:
    """Return the solution with weight scales that leave room for `bias` in int32, and that."""
    assert activations.input is not None  # the plan says so
    scale = activations.input.like(weight).scale
    qtensor, remarks = make_room(solution.qtensor, weight, bias, scale)
    enlarged = replace(solution, qtensor=qtensor, remarks=(*solution.remarks, *remarks))
    return enlarged, quantize_bias(bias, scale, qtensor)
