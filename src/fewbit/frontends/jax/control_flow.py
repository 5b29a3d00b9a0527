"""Loops, branches and functions with derivatives of their own, rebuilt around bodies that multiply by weights.

A weight goes into a scan as its packed arrays, so that each step dequantizes its own matrix; what a loop hands on
unchanged is a constant of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
    """Return what a function gives that says itself what its derivatives are: those it has for the values of codes."""
    weights = [isinstance(own, Weight) for own in operands]

    def as_it_is(*own: Any) -> list[Any]:
        return [concrete(part) for part in function(*own)]

    def in_floats(own: tuple[Any, ...]) -> tuple[Callable[..., list[Any]], list[Any]]:
        """Return the function of what is no weight, and that; the weights are their values."""

        def of_others(*others: Any) -> list[Any]:
            rest = iter(others)
            return bind(equation, [concrete(part) if weight else next(rest) for part, weight in zipped(own)])

        return of_others, [part for part, weight in zipped(own) if not weight]

    def zipped(own: Sequence[Any]) -> Iterable[tuple[Any, bool]]:
        return zip(own, weights, strict=True)

    if equation.primitive.name == "custom_jvp_call":
        forward = jax.custom_jvp(as_it_is)

        def tangents(own: tuple[Any, ...], change: tuple[Any, ...]) -> Any:
            of_others, others = in_floats(own)
            changes = [part for part, weight in zipped(change) if not weight]
            return as_it_is(*own), jax.jvp(of_others, others, changes)[1]

        forward.defjvp(tangents)
        found: list[Any] = forward(*operands)
        return found
    backward = jax.custom_vjp(as_it_is)

    def gradients(own: tuple[Any, ...], change: list[Any]) -> tuple[Any, ...]:
        of_others, others = in_floats(own)
        given = iter(jax.vjp(of_others, *others)[1](change))
        return tuple(None if weight else next(given) for weight in weights)

    backward.defvjp(lambda *own: (as_it_is(*own), own), gradients)
    return list(backward(*operands))


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
