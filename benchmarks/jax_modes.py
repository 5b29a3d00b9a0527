"""Functions whose quantized forms are timed beside the float form, mode by mode, and what XLA made of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fewbit as fb
from fewbit.sources import open_source
from jax_minilm import in_nnx, minilm_folder
from jax_programs import Program

#: Modes by name: how weights and inputs are rounded.
MODES = {
    "int8": ("int8", None),
    "int4 g32": ("int4 g32", None),
    "int8 x int8": ("int8", "int8"),
    "int8 x int8 sym": ("int8", "int8 sym"),
    "int8 x int8 static": ("int8", "int8 static"),
}


@dataclass(frozen=True)
class Function:
    """A function of parameters and rows."""

    function: Callable[..., Any]
    parameters: Any
    inputs: Callable[[int], tuple[Any, ...]]
    rows: tuple[int, ...]
    #: Of which rows the products are shown.
    shown: tuple[int, ...]

    def runs(self, rows: int) -> dict[str, tuple[Callable[[], Any], Callable[[], Program]]]:
        """Return for float and each mode a call under jit, and what gives its program."""
        inputs = self.inputs(rows)
        found = {"float": _pair(self.function, self.parameters, inputs)}
        for name, (weight, given) in MODES.items():
            rules = [fb.Rule(kind="linear", weight=weight, input=given)]
            run, made = fb.jax.quantize(self.function, self.parameters, rules, *inputs, calibration=[inputs])
            found[name] = _pair(run, made, inputs)
        return found


def _pair(function: Any, parameters: Any, inputs: tuple[Any, ...]) -> Any:
    compiled = jax.jit(function)
    return (lambda: compiled(parameters, *inputs)), partial(Program.of, function, parameters, *inputs)


def functions() -> dict[str, Function]:
    """Return what is timed by name."""
    draw = np.random.default_rng(0)

    def rows(count: int) -> tuple[Any, ...]:
        return (jnp.asarray(draw.normal(size=(count, 384)), jnp.float32),)

    def tokens(count: int) -> tuple[Any, ...]:
        shape = (max(1, count // 64), min(count, 64))
        return jnp.asarray(draw.integers(1000, 20_000, shape), jnp.int32), jnp.ones(shape, jnp.int32)

    kernel = {"w": jnp.asarray(draw.normal(size=(384, 1536)), jnp.float32)}
    turned = {"w": kernel["w"].T.copy()}
    encoder = in_nnx(open_source(minilm_folder()).load().eval())
    sizes, shown = (1, 8, 64, 512), (1, 512)
    return {
        "`x @ w`, 384 to 1536, as Flax has it": Function(lambda p, x: x @ p["w"], kernel, rows, sizes, shown),
        "`x @ w.T`, as Equinox has it": Function(lambda p, x: x @ p["w"].T, turned, rows, sizes, ()),
        "MiniLM": Function(encoder.function, encoder.parameters, tokens, (8, 64, 512), (8, 512)),
    }
