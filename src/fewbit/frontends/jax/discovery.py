"""Which parameters a function multiplies by, where, and which weights are changed on the way, so that no rule has them.

A jaxpr is walked without numbers. A value is a view of a parameter, or made of parameters alone, or of the inputs too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

from jax.extend.core import Literal

from fewbit.frontends.jax.movement import moved, sliced_axis, slices_stack
from fewbit.frontends.jax.nested import called, carried_along, holds_function
from fewbit.frontends.jax.product import PRODUCTS, Product, product_of
from fewbit.frontends.jax.view import View


@dataclass(frozen=True, slots=True)
class Held:
    """A view of a parameter."""

    parameter: int
    view: View


@dataclass(frozen=True, slots=True)
class Made:
    """Made of no input: of constants, and of parameters, each with what changed it."""

    of: frozenset[tuple[int, str]] = frozenset()

    def changes(self) -> list[tuple[int, str]]:
        """Return each parameter with all that changed it."""
        return [
            (own, " and ".join(sorted(why for place, why in self.of if place == own)))
            for own in sorted({place for place, _ in self.of})
        ]


@dataclass(frozen=True, slots=True)
class Fed:
    """Made of an input."""

    #: The same for values with the same numbers, in whatever shape or type.
    numbers: object = field(compare=False)

    @classmethod
    def anew(cls) -> Fed:
        """Return the trace of numbers that nothing else has."""
        return cls(object())


Trace: TypeAlias = Held | Made | Fed
_CONSTANT = Made()
#: What gives the numbers that it gets.
_SAME_NUMBERS = frozenset(("reshape", "squeeze", "expand_dims", "transpose", "convert_element_type", "copy"))


@dataclass(frozen=True, slots=True)
class Use:
    """An operation that multiplies."""

    primitive: str
    #: Names of the scopes around it, with points between.
    scope: str
    #: The parameter that is its weight, and how; `None`: it has none that a rule can reach.
    parameter: int | None = None
    product: Product | None = None
    #: The numbers that it multiplies by: those of `Fed`.
    numbers: object | None = None


@dataclass(slots=True)
class Discovery:
    """What a walk has found."""

    uses: list[Use] = field(default_factory=list)
    #: What changes a weight on its way, by parameter.
    unreached: dict[int, str] = field(default_factory=dict)
    #: Parameters that the function also returns.
    returned: set[int] = field(default_factory=set)


def discover(closed: Any, parameters: int) -> Discovery:
    """Return what a closed jaxpr, whose first `parameters` operands are parameters, does with them."""
    walk = _Walk()
    jaxpr = closed.jaxpr
    given: list[Trace] = [
        Held(place, View.of(variable.aval.shape)) if place < parameters else Fed.anew()
        for place, variable in enumerate(jaxpr.invars)
    ]
    for trace in walk.run(jaxpr, given, ""):
        if isinstance(trace, Held):
            walk.found.returned.add(trace.parameter)
    return walk.found


class _Walk:
    """A walk through a jaxpr and the functions in it."""

    def __init__(self) -> None:
        self.found = Discovery()
        #: Whether what is seen counts; a loop is gone through first to see what it carries.
        self.counting = True

    def run(self, jaxpr: Any, given: Sequence[Trace], scope: str) -> list[Trace]:
        """Return the traces of what `jaxpr` gives for operands with these."""
        known: dict[Any, Trace] = dict.fromkeys(jaxpr.constvars, _CONSTANT)
        known.update(zip(jaxpr.invars, given, strict=True))

        def read(atom: Any) -> Trace:
            return _CONSTANT if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            own = ".".join(part for part in (scope, *_scopes(str(equation.source_info.name_stack))) if part)
            found = self._equation(equation, [read(atom) for atom in equation.invars], own)
            known.update(zip(equation.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, traces: list[Trace], scope: str) -> list[Trace]:
        name = equation.primitive.name
        if (inner := called(equation)) is not None:
            return self.run(inner[0], [*([_CONSTANT] * (len(inner[0].invars) - len(traces))), *traces], scope)
        if name in _LOOPS:
            found: list[Trace] = _LOOPS[name](self, equation, traces, scope)
            return found
        kept = self._moved(equation, traces)
        if kept is not None:
            return [kept]
        if name in _SAME_NUMBERS and isinstance(traces[0], Fed):
            return traces[:1]
        if name in PRODUCTS:
            if self._multiply(equation, traces, scope):
                return [Fed.anew() for _ in equation.outvars]
        elif holds_function(equation):
            self._lose(traces, f"{_where(name, scope)}, which fewbit does not look into")
        # Which of several matrices is taken may hang on inputs: what is taken is still a weight.
        chosen = name in ("gather", "dynamic_slice") and _is_stack(traces[0])
        mixed = self._mixed(traces[:1] if chosen else traces, _where(name, scope))
        return _anew([mixed] * len(equation.outvars))

    def _moved(self, equation: Any, traces: list[Trace]) -> Held | None:
        """Return the view that an equation makes of the one that it gets, or `None`."""
        held = [place for place, trace in enumerate(traces) if isinstance(trace, Held) and prod(trace.view.shape) > 1]
        if len(held) != 1:
            return None
        trace = traces[held[0]]
        assert isinstance(trace, Held)
        if slices_stack(equation):
            axis = sliced_axis(equation) if held[0] == 0 else None
            return None if axis is None else Held(trace.parameter, trace.view.narrowed(axis))
        view = moved(equation, held[0], trace.view)
        return None if view is None else Held(trace.parameter, view)

    def _multiply(self, equation: Any, traces: list[Trace], scope: str) -> bool:
        """Note a product, and its weight if it has one; return whether it has."""
        name = equation.primitive.name
        # Rows of a table are inputs, also where their places are constants: those of positions.
        fed = name == "gather" or any(isinstance(trace, Fed) for trace in traces)
        weights = [place for place, trace in enumerate(traces) if isinstance(trace, Held)]
        use = Use(name, scope)
        for place in weights if fed and len(weights) == 1 else ():
            trace = traces[place]
            assert isinstance(trace, Held)
            product = product_of(equation, place, trace.view)
            if product is not None:
                others = [own.numbers for own in traces if isinstance(own, Fed)]
                use = Use(name, scope, trace.parameter, product, others[0] if len(others) == 1 else None)
            elif name != "gather":  # rows that are picked otherwise are what is made of the parameter
                self._lose([trace], f"{_where(name, scope)}, in a form that fewbit does not know")
        if self.counting:
            self.found.uses += [use] if name != "gather" or use.product else []
            for trace in traces if fed else ():
                for parameter, why in trace.changes() if isinstance(trace, Made) and name != "gather" else ():
                    self.found.unreached.setdefault(parameter, why)
        return use.product is not None

    def _lose(self, traces: Sequence[Trace], why: str) -> None:
        """Note the parameters among the operands of an equation, of two axes at least, as unreached."""
        for trace in traces if self.counting else ():
            if isinstance(trace, Held) and sum(size > 1 for size in trace.view.shape) > 1:
                self.found.unreached.setdefault(trace.parameter, why)

    def _mixed(self, traces: Sequence[Trace], where: str) -> Trace:
        """Return the trace of what is made of values with these."""
        if any(isinstance(trace, Fed) for trace in traces):
            return Fed.anew()
        parameters: set[tuple[int, str]] = set()
        for trace in traces:
            parameters |= {(trace.parameter, where)} if isinstance(trace, Held) else set(getattr(trace, "of", ()))
        return Made(frozenset(parameters))

    def _met(self, one: Trace, other: Trace, where: str) -> Trace:
        """Return the trace of what may be either of two values."""
        return one if one == other else self._mixed([one, other], where)

    def scan(self, equation: Any, traces: list[Trace], scope: str) -> list[Trace]:
        """Go through a scan: constants, what is carried, and slices of the rest."""
        parameters, body = equation.params, equation.params["jaxpr"].jaxpr
        constants, carried = parameters["num_consts"], parameters["num_carry"]
        fixed, start, rest = traces[:constants], traces[constants : constants + carried], traces[constants + carried :]
        start, rest = _anew(start), _anew(rest)
        slices = [Held(own.parameter, own.view.without(0)) if isinstance(own, Held) else own for own in rest]
        along = carried_along(body, constants, carried)

        def once(state: list[Trace]) -> list[Trace]:
            return self.run(body, [*fixed, *state, *slices], scope)

        state, after = self._settled(once, start, along, _where("scan", scope))
        outputs = [self._mixed([own], _where("scan", scope)) for own in after[carried:]]
        return [*state, *outputs]

    def loop(self, equation: Any, traces: list[Trace], scope: str) -> list[Trace]:
        """Go through a while loop."""
        parameters, body = equation.params, equation.params["body_jaxpr"].jaxpr
        first, second = parameters["cond_nconsts"], parameters["body_nconsts"]
        asked, fixed, start = traces[:first], traces[first : first + second], _anew(traces[first + second :])
        along = carried_along(body, second, len(start))
        state, _ = self._settled(
            lambda own: self.run(body, [*fixed, *own], scope), start, along, _where("while", scope)
        )
        self.run(parameters["cond_jaxpr"].jaxpr, [*asked, *state], scope)
        return state

    def branch(self, equation: Any, traces: list[Trace], scope: str) -> list[Trace]:
        """Go through every branch; what decides is as if it were part of what they give."""
        where = _where("cond", scope)
        found = [self.run(own.jaxpr, traces[1:], scope) for own in equation.params["branches"]]
        met = list(found[0])
        for other in found[1:]:
            met = [self._met(one, two, where) for one, two in zip(met, other, strict=True)]
        met = [self._mixed([own], where) if isinstance(own, Held) else own for own in met]
        return [Fed.anew() for _ in met] if isinstance(traces[0], Fed) else met

    def _settled(self, once: Any, start: list[Trace], along: list[bool], where: str) -> tuple[list[Trace], list[Trace]]:
        """Return the traces that a loop carries in the end, and what its body gives for these."""
        counting, self.counting = self.counting, False
        state = [own if keeps else self._mixed([own], where) for own, keeps in zip(start, along, strict=True)]
        while True:
            after = once(state)
            grown = [self._met(own, new, where) for own, new in zip(state, after[: len(state)], strict=True)]
            if grown == state:
                break
            state = grown
        self.counting = counting
        return state, once(state)


_LOOPS: dict[str, Any] = {"scan": _Walk.scan, "while": _Walk.loop, "cond": _Walk.branch}


def _scopes(stack: str) -> list[str]:
    """Return the names of scopes, without the transformations around them: `vmap(mlp/up)` is `mlp` and `up`."""
    plain = re.sub(r"\b(?:vmap|jvp|transpose|checkpoint|rematted_computation)\(", "", stack)
    return (plain.replace(")", "") if plain != stack else stack).split("/")


def _anew(traces: Sequence[Trace]) -> list[Trace]:
    """Return traces of other numbers."""
    return [Fed.anew() if isinstance(own, Fed) else own for own in traces]


def _is_stack(trace: Trace) -> bool:
    return isinstance(trace, Held) and sum(size > 1 for size in trace.view.shape) > 2


def _where(primitive: str, scope: str) -> str:
    return f"{primitive!r} in {scope!r}" if scope else repr(primitive)
