"""GPTQ of one matrix by fewbit and by Qwix: second moments of the same inputs, then codes and scales."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from qwix._src.core import qarray
from qwix.contrib import gptq_core

import fewbit as fb

#: Notation, and the tiles of Qwix's.
SCHEMES: dict[str, int | None] = {"int4 channel": None, "int4 g128": 128}
#: What Qwix's GPTQ does and no more.
_AS_QWIX = fb.Gptq(order="none", relative=False, search=False, sweeps=0, fit=False)


def runs(width: int, scheme: str) -> dict[str, Callable[[], float]]:
    """Return what is timed by name, Qwix first; each returns the error of outputs as a share of rounding's."""
    draw = np.random.default_rng(0)
    weight = jnp.asarray(draw.normal(size=(width, width)) * width**-0.5, jnp.float32)  # (in, out)
    mixing = draw.normal(size=(width, width)) * width**-0.5
    rows = jnp.asarray(draw.normal(size=(2 * width, width)) @ mixing, jnp.float32)
    nearest = _error(_by_fewbit(weight, rows, scheme, fb.Nearest()), weight, rows)

    def shared(solve: Callable[..., Any], *given: Any) -> float:
        return _error(solve(weight, rows, scheme, *given), weight, rows) / nearest

    return {
        "Qwix": partial(shared, _by_qwix),
        "fewbit, what Qwix does": partial(shared, _by_fewbit, _AS_QWIX),
        "fewbit": partial(shared, _by_fewbit, fb.Gptq()),
    }


def _by_qwix(weight: Any, rows: Any, scheme: str) -> Any:
    """Return the weight (in, out) that Qwix's codes stand for."""
    tile = SCHEMES[scheme]
    how = qarray.HowToQuantize(qtype=jnp.int4, channelwise_axes=(0,), tiled_axes={1: tile} if tile else {})
    moment = gptq_core.compute_hessian(rows.T)
    found = gptq_core.quantize_weight(weight.T, moment, how)[0]
    return jax.block_until_ready(qwix.dequantize(found).T)


def _by_fewbit(weight: Any, rows: Any, scheme: str, algorithm: Any) -> Any:
    """Return the weight that fewbit's codes stand for, from tracing the function to packed codes and back."""
    rule = fb.Rule("w", weight=scheme, algorithm=algorithm)
    _, made = fb.jax.quantize(lambda p, x: x @ p["w"], {"w": weight}, [rule], rows, calibration=[rows])
    return jax.block_until_ready(fb.jax.dequantize(made)["w"])


def _error(found: Any, weight: Any, rows: Any) -> float:
    return float(jnp.linalg.norm(rows @ (found - weight)))
