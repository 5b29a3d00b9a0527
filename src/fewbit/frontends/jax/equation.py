"""An equation of a jaxpr run as it is, on arrays or on tracers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def bind(equation: Any, operands: Sequence[Any]) -> list[Any]:
    """Return what the operation of `equation` gives for `operands`."""
    given = equation.primitive.get_bind_params(equation.params)
    # Older versions of JAX give the functions that an operation holds as operands of their own.
    functions, parameters = given if isinstance(given, tuple) else ((), given)
    with equation.ctx.manager:
        found = equation.primitive.bind(*functions, *operands, **parameters)
    return list(found) if equation.primitive.multiple_results else [found]
