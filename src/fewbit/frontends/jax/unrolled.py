"""A jaxpr as a flat list of operations on numbered values: calls read through, scans step by step.

So each matrix of a stack has an operation of its own, and a part of the function runs alone. `while` and `cond` stay
whole: which of their operations run hangs on numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Literal

from fewbit.frontends.jax.equation import bind
from fewbit.frontends.jax.nested import called


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """An operation, once."""

    run: Callable[[list[Any]], list[Any]]
    #: Numbers of values.
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    #: `None`: a step's part of what a scan goes through, or the stack of what it puts out.
    equation: Any = None
    #: Which part, of the former.
    step: int | None = None

    @property
    def name(self) -> str:
        """Name of the primitive, empty where there is none."""
        return self.equation.primitive.name if self.equation is not None else ""


@dataclass(frozen=True, slots=True)
class Unrolled:
    """A function without functions in it."""

    #: In an order in which they can run.
    nodes: tuple[Node, ...]
    #: Values that are there already.
    constants: Mapping[int, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    #: The node that makes each value.
    makers: Mapping[int, int]

    @classmethod
    def of(cls, closed: Any) -> Unrolled:
        """Return a closed jaxpr unrolled."""
        work = _Unrolling()
        inputs = tuple(next(work.numbers) for _ in closed.jaxpr.invars)
        outputs = tuple(work.run(closed.jaxpr, closed.consts, inputs))
        makers = {value: place for place, node in enumerate(work.nodes) for value in node.outputs}
        return cls(tuple(work.nodes), work.constants, inputs, outputs, makers)

    def behind(self, targets: Iterable[int], given: Collection[int]) -> list[int]:
        """Return the places of the nodes that make `targets` from `given` values, in order."""
        waiting, found = [*targets], set()
        while waiting:
            value = waiting.pop()
            place = None if value in given else self.makers.get(value)
            if place is not None and place not in found:
                found.add(place)
                waiting += self.nodes[place].inputs
        return sorted(found)

    def evaluate(self, targets: Sequence[int], given: Mapping[int, Any]) -> list[Any]:
        """Return the values numbered `targets`, from the numbers that are `given`; others are let go of on the way."""
        known = {**self.constants, **given}
        places = self.behind(targets, given)
        last = {value: place for place in places for value in self.nodes[place].inputs}
        kept = {*targets, *self.constants, *given}
        for place in places:
            node = self.nodes[place]
            made = node.run([known[value] for value in node.inputs])
            known.update(zip(node.outputs, made, strict=True))
            for value in {*node.inputs, *node.outputs} - kept:
                if last.get(value, place) == place:
                    del known[value]
        return [known[value] for value in targets]


@dataclass(slots=True)
class _Unrolling:
    """What has been unrolled so far."""

    nodes: list[Node] = field(default_factory=list)
    constants: dict[int, Any] = field(default_factory=dict)
    numbers: Any = field(default_factory=count)

    def run(self, jaxpr: Any, constants: Sequence[Any], operands: Sequence[int]) -> list[int]:
        """Add the operations of `jaxpr`; return the numbers of what it gives."""
        known = dict(zip(jaxpr.invars, operands, strict=True))
        known.update(
            (variable, self._constant(value)) for variable, value in zip(jaxpr.constvars, constants, strict=True)
        )

        def read(atom: Any) -> int:
            return self._constant(atom.val) if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            found = self._equation(equation, [read(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, operands: list[int]) -> list[int]:
        inner = called(equation)
        if inner is not None:
            return self.run(*inner, operands)
        if equation.primitive.name == "scan":
            return self._scan(equation, operands)
        return self._add(partial(bind, equation), operands, len(equation.outvars), equation=equation)

    def _scan(self, equation: Any, operands: list[int]) -> list[int]:
        parameters, inner = equation.params, equation.params["jaxpr"]
        first, second = parameters["num_consts"], parameters["num_consts"] + parameters["num_carry"]
        fixed, state, rest = operands[:first], operands[first:second], operands[second:]
        steps = range(parameters["length"])
        outputs: dict[int, list[int]] = {}
        for step in reversed(steps) if parameters["reverse"] else steps:
            parts = [self._add(partial(_part, step), [own], 1, step=step)[0] for own in rest]
            found = self.run(inner.jaxpr, inner.consts, [*fixed, *state, *parts])
            state, outputs[step] = found[: len(state)], found[len(state) :]
        stacked = [self._add(_stack, list(own), 1)[0] for own in zip(*(outputs[step] for step in steps), strict=True)]
        return [*state, *stacked]

    def _add(
        self, run: Callable[[list[Any]], list[Any]], operands: list[int], outputs: int, *, equation: Any = None,
        step: int | None = None,
    ) -> list[int]:  # fmt: skip
        made = [next(self.numbers) for _ in range(outputs)]
        self.nodes.append(Node(run, tuple(operands), tuple(made), equation, step))
        return made

    def _constant(self, value: Any) -> int:
        number: int = next(self.numbers)
        self.constants[number] = value
        return number


def _part(step: int, operands: list[Any]) -> list[Any]:
    return [operands[0][step]]


def _stack(operands: list[Any]) -> list[Any]:
    return [jnp.stack(operands)]
