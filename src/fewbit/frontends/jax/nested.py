"""The operations that hold functions: which of their parameters is the function that they run.

Those that run it once and give what it gives are read through; loops and branches are not of this kind.
"""

from __future__ import annotations

from typing import Any

#: The parameter that holds the function, by the name of the primitive.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def called(equation: Any) -> tuple[Any, list[Any]] | None:
    """Return the jaxpr that an equation runs once on its operands, with its constants, or `None`."""
    name = _CALLS.get(equation.primitive.name)
    if name is None:
        return None
    function = equation.params[name]
    return (function.jaxpr, function.consts) if hasattr(function, "consts") else (function, [])


def holds_function(equation: Any) -> bool:
    """Return whether an equation has a function among its parameters."""
    values = [part for own in equation.params.values() for part in (own if isinstance(own, tuple | list) else [own])]
    return any(hasattr(value, "eqns") or hasattr(value, "jaxpr") for value in values)


def carried_along(body: Any, constants: int, carried: int) -> list[bool]:
    """Return for each number that a loop carries whether its body hands it on as it is."""
    given = body.invars[constants : constants + carried]
    return [own is after for own, after in zip(given, body.outvars[:carried], strict=True)]
