"""Products with quantized weights: codes by codes in int32 where both sides have 8 bits, else values by values."""

from __future__ import annotations

from typing import Any

from fewbit.errors import SchemeError
from fewbit.frontends.jax.equation import bind
from fewbit.frontends.jax.gathered_rows import gathered
from fewbit.frontends.jax.integer_product import integer_stack, multiplies_codes
from fewbit.frontends.jax.interpreter import Interpreter
from fewbit.frontends.jax.one_by_one import after_input
from fewbit.frontends.jax.packed_weight import Description, is_packed
from fewbit.frontends.jax.product import Product
from fewbit.frontends.jax.rounded_rows import rounded_by_expert, rounded_samples, rounded_stack
from fewbit.frontends.jax.rows import rows_of
from fewbit.frontends.jax.weight import Weight
from fewbit.numerics.namespace import Array


def multiply(equation: Any, product: Product, operands: list[Any], weight: Weight) -> Array:
    """Return what a product gives with the weight quantized, its input rounded where that is asked for."""
    if product.kind == "embedding":
        return gathered(equation, product, operands, weight)
    packed: Any = weight.held
    given = operands[1 - product.position]
    if weight.about.input is not None:
        if product.layout != weight.about.layout:
            raise SchemeError(
                f"{weight.about.name} is multiplied along other axes here than where it was quantized, and its input "
                "is rounded; leave out `input`, or keep it"
            )
        rows = rows_of(equation, product, given)
        if equation.primitive.name == "dot_general" and is_packed(packed) and multiplies_codes(weight.about):
            return arranged(integer_stack(rows.values, packed), equation, product, weight)
        if product.kind == "conv":
            values = rounded_samples(rows.values, packed)
        elif equation.primitive.name.startswith("ragged"):
            values = rounded_by_expert(rows.values, operands[2], packed)
        else:
            values = rounded_stack(rows.values, packed)
        given = rows.back(values)
    values = after_input(weight, given).values()
    both = [given, values] if product.position == 1 else [values, given]
    return bind(equation, [*both, *operands[2:]])[0]


def arranged(found: Array, equation: Any, product: Product, weight: Weight) -> Array:
    """Return what dot_general gives, from products (stack..., tokens..., out) without the factor of the weight."""
    about = equation.outvars[0].aval
    if product.position == 0:  # the axes of the weight come before those of the tokens
        stack, last = len(weight.held.stack), found.ndim - 1
        found = found.transpose((*range(stack), last, *range(stack, last)))
    if weight.factor is not None:
        found = found * weight.factor
    return found.reshape(about.shape).astype(about.dtype)


def runs_as(primitive: str, product: Product, about: Description) -> str:
    """Return what a product with a quantized weight runs as, for the table."""
    if product.kind == "embedding":
        return "rows of codes, then dequantized"
    if about.input is None:
        return "float product of the dequantized weight"
    if primitive == "dot_general" and multiplies_codes(about):
        return "int8 x int8 -> int32"
    return "float product of rounded input and dequantized weight"


#: Evaluates what a quantized function runs.
REWRITING = Interpreter(multiply)
