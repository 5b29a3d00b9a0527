"""Repeat a step on a few arrays: a Python loop, or one compiled loop where a compiler would unroll it.

torch.compile leaves its graph for the loop and runs it as it is; under `fullgraph=True` it raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fewbit.numerics.namespace import Array, is_jax, is_torch

State = TypeVar("State", bound=tuple[Array, ...])


def repeat(count: int, step: Callable[[Any, State], State], state: State) -> State:
    """Return `state` after `step(0, .)`, ... `step(count - 1, .)`; shapes and types must stay as they are."""
    if is_jax(state[0]):
        import jax

        found: State = jax.lax.fori_loop(0, count, step, state)
        return found
    if is_torch(state[0]):
        import torch

        if torch.compiler.is_compiling():
            eager: State = torch.compiler.disable(_one_by_one)(count, step, state)  # type: ignore[no-untyped-call]
            return eager
    return _one_by_one(count, step, state)


def _one_by_one(count: int, step: Callable[[Any, State], State], state: State) -> State:
    for index in range(count):
        state = step(index, state)
    return state
