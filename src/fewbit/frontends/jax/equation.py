"""An equation of a jaxpr run as it is, on arrays or on tracers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def bind(equation: Any, operands: Sequence[Any]) -> list[Any]:
    """Return what the operation of `equation` gives for `operands`."""
    given = equation.primitive.get_bind_params(equation.params)
    # Functions that an operation holds were operands of their own up to JAX 0.9.
    functions, parameters = given if isinstance(given, tuple) else ((), given)
    with equation.ctx.manager:
        found = equation.primitive.bind(*functions, *operands, **parameters)
    return list(found) if equation.primitive.multiple_results else [found]
