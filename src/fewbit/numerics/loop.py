"""Searches and their loops where a compiler looks on: none is unrolled, and none is compiled again for equal shapes.

A search is a function `(self, boxes, axes, grid, weights, ...)` of arrays and, first, third and fourth, of three values
that can be hashed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

from fewbit.numerics.namespace import Array, is_jax, is_torch

State = TypeVar("State", bound=tuple[Array, ...])
Bounds = tuple[Array, Array]


def whole(method: Callable[..., Bounds]) -> Callable[..., Bounds]:
    """Return the search `method` as a whole: one compiled function on JAX, one step outside of torch.compile's graph.

    Under `fullgraph=True` torch raises.
    """

    @wraps(method)
    def run(
        self: Any, boxes: Array, axes: tuple[int, ...], grid: Any, weights: Array | None = None, *more: Array
    ) -> Bounds:
        if is_torch(boxes):
            import torch

            if torch.compiler.is_compiling():
                eager: Bounds = torch.compiler.disable(method)(self, boxes, axes, grid, weights, *more)  # type: ignore[no-untyped-call]
                return eager
        elif is_jax(boxes) and not _is_traced(boxes):
            return _compiled(method)(self, boxes, axes, grid, weights, *more)
        return method(self, boxes, axes, grid, weights, *more)

    return run


def repeat(count: int, step: Callable[[Any, State], State], state: State) -> State:
    """Return `state` after `step(0, .)`, ... `step(count - 1, .)`; shapes and types must stay as they are."""
    if is_jax(state[0]):
        import jax

        found: State = jax.lax.fori_loop(0, count, step, state)
        return found
    for index in range(count):
        state = step(index, state)
    return state


def _is_traced(values: Array) -> bool:
    import jax

    return isinstance(values, jax.core.Tracer)


@cache
def _compiled(method: Callable[..., Bounds]) -> Callable[..., Bounds]:
    import jax

    return jax.jit(method, static_argnums=(0, 2, 3))
