"""Ways to run a function of arrays: as it is or compiled, by each framework; each gives back NumPy arrays."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from typing import Any

import array_api_strict
import jax
import numpy as np
import pytest
import torch

Arrays = tuple[np.ndarray, ...]
#: Takes a function from one array to a tuple of arrays, returns the same on NumPy arrays.
Runner = Callable[[Callable[[Any], tuple[Any, ...]]], Callable[[np.ndarray], Arrays]]

#: Without a C++ compiler torch.compile cannot make machine code; its graph is then run operation by operation.
TORCH_BACKEND = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"


def _eager(from_numpy: Callable[[np.ndarray], Any]) -> Runner:
    return lambda function: lambda values: tuple(np.asarray(part) for part in function(from_numpy(values)))


def _strict(function: Callable[[Any], tuple[Any, ...]]) -> Callable[[np.ndarray], Arrays]:
    def run(values: np.ndarray) -> Arrays:
        with array_api_strict.ArrayAPIStrictFlags(boolean_indexing=False, data_dependent_shapes=False):
            return tuple(np.from_dlpack(part) for part in function(array_api_strict.asarray(values)))

    return run


def _jit(function: Callable[[Any], tuple[Any, ...]]) -> Callable[[np.ndarray], Arrays]:
    compiled = jax.jit(function)
    return lambda values: tuple(np.asarray(part) for part in compiled(values))


def _torch_compiled(function: Callable[[Any], tuple[Any, ...]]) -> Callable[[np.ndarray], Arrays]:
    torch._dynamo.reset()
    compiled = torch.compile(function, backend=TORCH_BACKEND, dynamic=False)

    def run(values: np.ndarray) -> Arrays:
        with warnings.catch_warnings():
            # array-api-compat asks its caches for the framework; the compiler warns of each, and inlines them.
            warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
            return tuple(part.numpy() for part in compiled(torch.from_numpy(values)))

    return run


_RUNNERS: dict[str, Runner] = {
    "array-api-strict": _strict,
    "torch": _eager(torch.from_numpy),
    f"torch compiled ({TORCH_BACKEND})": _torch_compiled,
    "jax": _eager(jax.numpy.asarray),
    "jax jit": _jit,
}


@pytest.fixture(params=_RUNNERS)
def runner(request: pytest.FixtureRequest) -> Runner:
    """Each framework but NumPy in turn, eager and compiled."""
    return _RUNNERS[request.param]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `every_row` marks, where it names the runner; `--every-row` runs all."""
    if not config.getoption("--every-row"):
        left_out = [item for item in items if _is_left_out(item)]
        items[:] = [item for item in items if item not in set(left_out)]
        config.hook.pytest_deselected(items=left_out)


def _is_left_out(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    runner = callspec.params.get("runner", "") if callspec else ""
    return any(runner.split(" (")[0] in mark.args for mark in item.iter_markers("every_row"))
