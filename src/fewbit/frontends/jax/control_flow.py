"""Loops, branches and functions with derivatives of their own, rebuilt around bodies that multiply by weights.

A weight goes into a scan as its packed arrays, so that each step dequantizes its own matrix; what a loop hands on
unchanged is a constant of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from fewbit.frontends.jax.equation import bind
from fewbit.frontends.jax.nested import carried_along
from fewbit.frontends.jax.weight import Weight, concrete

if TYPE_CHECKING:
    from fewbit.frontends.jax.interpreter import Interpreter


def scan(run: Interpreter, equation: Any, operands: list[Any]) -> list[Any]:
    """Return what a scan gives."""
    parameters, inner = equation.params, equation.params["jaxpr"]
    constants, carried = parameters["num_consts"], parameters["num_carry"]
    fixed, start, rest = (
        operands[:constants],
        operands[constants : constants + carried],
        operands[constants + carried :],
    )
    state = _State(start, carried_along(inner.jaxpr, constants, carried))
    factors = [own.factor if isinstance(own, Weight) else None for own in rest]
    rest = [own.scaled_by(None) if isinstance(own, Weight) else own for own in rest]

    def body(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
        both = zip(slices, factors, strict=True)
        own = [part.sliced().scaled_by(by) if isinstance(part, Weight) else part for part, by in both]
        found = run(inner.jaxpr, inner.consts, [*fixed, *state.whole(carry), *own])
        return state.changing(found[:carried]), [concrete(part) for part in found[carried:]]

    if run.eager:
        carry, outputs = _stepped(body, state.changing(start), rest, parameters)
    else:
        carry, outputs = jax.lax.scan(
            body,
            state.changing(start),
            rest,
            length=parameters["length"],
            reverse=parameters["reverse"],
            unroll=parameters["unroll"],
        )
    return [*state.whole(carry), *outputs]


def loop(run: Interpreter, equation: Any, operands: list[Any]) -> list[Any]:
    """Return what a while loop gives."""
    asks, inner = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    first, second = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    asked, fixed, start = operands[:first], operands[first : first + second], operands[first + second :]
    state = _State(start, carried_along(inner.jaxpr, second, len(start)))

    def goes_on(carry: list[Any]) -> Any:
        return concrete(run(asks.jaxpr, asks.consts, [*asked, *state.whole(carry)])[0])

    def body(carry: list[Any]) -> list[Any]:
        return state.changing(run(inner.jaxpr, inner.consts, [*fixed, *state.whole(carry)]))

    carry = state.changing(start)
    if run.eager:
        while bool(goes_on(carry)):
            carry = body(carry)
    else:
        carry = jax.lax.while_loop(goes_on, body, carry)
    return state.whole(carry)


def branch(run: Interpreter, equation: Any, operands: list[Any]) -> list[Any]:
    """Return what one of several branches gives."""
    index, *given = operands
    functions = [_branch(run, own) for own in equation.params["branches"]]
    if run.eager:
        return functions[min(max(int(index), 0), len(functions) - 1)](*given)
    found: list[Any] = jax.lax.switch(index, functions, *given)
    return found


def remat(function: Callable[..., list[Any]], equation: Any, operands: list[Any]) -> list[Any]:
    """Return what a function gives whose values are computed anew for derivatives."""
    parameters = equation.params
    again = jax.checkpoint(
        lambda *own: [concrete(part) for part in function(*own)],
        prevent_cse=parameters["prevent_cse"],
        policy=parameters["policy"],
    )
    found: list[Any] = again(*operands)
    return found


def custom(function: Callable[..., list[Any]], equation: Any, operands: list[Any]) -> list[Any]:
    """Return what a function gives that says itself what its derivatives are: those it has for the values of weights.

    The values stand beside the weights, so that in training derivatives go on to what these are made of.
    """
    weights = [isinstance(own, Weight) for own in operands]
    values = [own.values() for own in operands if isinstance(own, Weight)]

    def as_it_is(own: Sequence[Any], _: Sequence[Any]) -> list[Any]:
        return [concrete(part) for part in function(*own)]

    def in_floats(*floats: Any) -> list[Any]:
        return bind(equation, floats)

    def merged(own: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        rest = iter(values)
        return [next(rest) if weight else part for part, weight in zip(own, weights, strict=True)]

    if equation.primitive.name == "custom_jvp_call":
        forward = jax.custom_jvp(as_it_is)

        def tangents(given: tuple[Any, Any], change: tuple[Any, Any]) -> Any:
            return as_it_is(*given), jax.jvp(in_floats, merged(*given), merged(*change))[1]

        forward.defjvp(tangents)
        found: list[Any] = forward(operands, values)
        return found
    backward = jax.custom_vjp(as_it_is)

    def gradients(given: tuple[Any, Any], change: list[Any]) -> tuple[Any, Any]:
        parts = list(zip(jax.vjp(in_floats, *merged(*given))[1](change), weights, strict=True))
        return [None if weight else own for own, weight in parts], [own for own, weight in parts if weight]

    backward.defvjp(lambda *given: (as_it_is(*given), given), gradients)
    return list(backward(operands, values))


class _State:
    """What a loop carries: what changes, and what its body hands on as it is, which stays outside."""

    def __init__(self, start: list[Any], along: list[bool]) -> None:
        self._fixed = {place: own for place, own in enumerate(start) if along[place] and isinstance(own, Weight)}

    def changing(self, values: list[Any]) -> list[Any]:
        """Return what changes, as arrays."""
        return [concrete(own) for place, own in enumerate(values) if place not in self._fixed]

    def whole(self, changing: list[Any]) -> list[Any]:
        """Return everything in order."""
        rest, count = iter(changing), len(changing) + len(self._fixed)
        return [self._fixed[place] if place in self._fixed else next(rest) for place in range(count)]


def _branch(run: Interpreter, inner: Any) -> Callable[..., list[Any]]:
    return lambda *own: [concrete(part) for part in run(inner.jaxpr, inner.consts, own)]


def _stepped(body: Any, carry: list[Any], rest: list[Any], parameters: Any) -> tuple[list[Any], list[Any]]:
    """Return what a scan carries in the end and what it puts out, a step of Python at a time."""
    steps = range(parameters["length"])
    outputs: dict[int, list[Any]] = {}
    for step in reversed(steps) if parameters["reverse"] else steps:
        carry, outputs[step] = body(carry, [jax.tree.map(lambda own, at=step: own[at], part) for part in rest])
    columns = zip(*(outputs[step] for step in steps), strict=True)
    return carry, [jnp.stack(list(column)) for column in columns]


#: How each is run, by the name of its primitive.
CONTROL: dict[str, Callable[[Any, Any, list[Any]], list[Any]]] = {"scan": scan, "while": loop, "cond": branch}
