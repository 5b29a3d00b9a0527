"""Evaluate a jaxpr with some of its operands replaced by weights; each product with one is left to who asks.

What no weight goes into runs as it is. A weight that is moved or scaled stays one; for whatever else reads it, it
becomes the array that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend.core import Literal

from fewbit.frontends.jax.control_flow import CONTROL, custom, remat
from fewbit.frontends.jax.equation import bind
from fewbit.frontends.jax.nested import called
from fewbit.frontends.jax.product import Product, product_of
from fewbit.frontends.jax.weight import Weight, concrete

#: What a product gives for its equation, what it multiplies, its operands, and which weight is among them.
Multiply = Callable[[Any, Product, list[Any], Weight], Any]


@dataclass(frozen=True, slots=True)
class Interpreter:
    """An evaluation of jaxprs."""

    multiply: Multiply
    #: Loops and branches run in Python, so that products are given numbers, not tracers.
    eager: bool = False

    def __call__(self, jaxpr: Any, constants: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        """Return what `jaxpr` gives; a weight that it hands on is still one."""
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
        known.update(zip(jaxpr.invars, operands, strict=True))
        last = _last_readers(jaxpr)

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else known[atom]

        for place, equation in enumerate(jaxpr.eqns):
            found = self._equation(equation, [read(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, found, strict=True))
            for gone in last.get(place, ()):
                del known[gone]
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, operands: list[Any]) -> list[Any]:
        weights = [place for place, own in enumerate(operands) if isinstance(own, Weight)]
        if not weights:
            return bind(equation, operands)
        name = equation.primitive.name
        if name in CONTROL:
            return CONTROL[name](self, equation, operands)
        inner = called(equation)
        if inner is not None:
            return self._called(equation, inner, operands)
        if len(weights) == 1:
            place = weights[0]
            weight: Weight = operands[place]
            after = weight.after(equation, place, operands)
            if after is not None:
                return [after]
            product = product_of(equation, place, weight.view)
            if product is not None:
                return [self.multiply(equation, product, operands, weight)]
        return bind(equation, [concrete(own) for own in operands])

    def _called(self, equation: Any, inner: tuple[Any, list[Any]], operands: list[Any]) -> list[Any]:
        """Run a function that an equation holds, keeping what is said of its derivatives."""
        name = equation.primitive.name

        def run(*own: Any) -> list[Any]:
            return self(*inner, own)

        if self.eager or not (name.startswith("custom_") or "prevent_cse" in equation.params):
            return run(*operands)
        return custom(run, equation, operands) if name.startswith("custom_") else remat(run, equation, operands)


def _last_readers(jaxpr: Any) -> dict[int, list[Any]]:
    """Return the variables that no equation after each place reads, so that they need not be held."""
    kept = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    found: dict[int, list[Any]] = {}
    for place in range(len(jaxpr.eqns) - 1, -1, -1):
        equation = jaxpr.eqns[place]
        for atom in (*equation.invars, *equation.outvars):
            if not isinstance(atom, Literal) and atom not in kept:
                kept.add(atom)
                found.setdefault(place, []).append(atom)
    return found
