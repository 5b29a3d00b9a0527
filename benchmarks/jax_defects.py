"""What Qwix 0.1.8 leaves float, refuses or loses, each beside fewbit on the same Flax model, in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import linen as nn
from qwix.contrib import gptq

import fewbit as fb


@dataclass(frozen=True)
class Defect:
    """A case, and what both make of it; each returns outputs, and what the float model gives."""

    name: str
    by_qwix: Callable[[], tuple[Any, Any]]
    by_fewbit: Callable[[], tuple[Any, Any]]


def normal(*shape: int, seed: int = 0, std: float = 1.0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * std, jnp.float32)


class Bare(nn.Module):
    """A product written as an operator."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x @ self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 64))


class Wide(nn.Module):
    """A product of bfloat16 numbers that is to be float32."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        own = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 64), jnp.bfloat16)
        numbers = (((x.ndim - 1,), (0,)), ((), ()))
        return jax.lax.dot_general(x, own, numbers, preferred_element_type=jnp.float32)


class Tied(nn.Module):
    """An embedding that is also the head."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        table = nn.Embed(40, 64)
        return table.attend(table(x))


DENSE, CONV = nn.Dense(64, use_bias=False), nn.Conv(8, (3, 3), use_bias=False)
X, IMAGES, TOKENS = normal(8, 64, seed=1), normal(2, 6, 6, 4, seed=1), jnp.arange(12).reshape(2, 6)
HALF = X.astype(jnp.bfloat16)
DATA = normal(256, 64, seed=2) @ normal(64, 64, seed=3)


def started(model: Any, x: Any, std: float = 1.0) -> Any:
    """Return float parameters, scaled by `std`."""
    return jax.tree.map(lambda own: own * std, model.init(jax.random.key(0), x)["params"])


def qwix_after(model: Any, x: Any, rule: Any, *, std: float = 1.0, seen: Any = None) -> tuple[Any, Any]:
    """Return what Qwix's post-training quantization gives; `seen` are statistics of GPTQ."""
    parameters = started(model, x, std)
    changed = qwix.quantize_model(model, qwix.PtqProvider([rule]))
    abstract = jax.eval_shape(changed.init, jax.random.key(0), x)["params"]
    if seen is None:
        made = qwix.quantize_params(parameters, abstract)
    else:
        watching = qwix.quantize_model(model, gptq.GptqCalibrationProvider([rule]))
        _, found = watching.apply({"params": parameters}, seen, mutable=["quant_stats"])
        made = gptq.quantize_params(parameters, abstract, found["quant_stats"])
    return changed.apply({"params": made}, x), model.apply({"params": parameters}, x)


def qwix_in_training(model: Any, x: Any, rule: Any, *, other: Any = None) -> tuple[Any, Any]:
    """Return what Qwix's model for training gives on `x`, or, with the ranges of `x`, on `other`."""
    parameters = started(model, x)
    want = [jax.jit(model.apply)({"params": parameters}, x) for _ in range(2)][-1]
    changed = qwix.quantize_model(model, qwix.QtProvider([rule]))
    found, seen = changed.apply({"params": parameters}, x, mutable=["quant_stats"])
    if other is None:
        return found, want
    return changed.apply({"params": parameters, **seen}, other), model.apply({"params": parameters}, other)


def fewbit_after(
    model: Any, x: Any, rule: fb.Rule, *, std: float = 1.0, seen: Any = None, other: Any = None
) -> tuple[Any, Any]:
    """Return what fewbit gives on `x`, or on `other`."""
    parameters, other = {"params": started(model, x, std)}, x if other is None else other
    want = jax.jit(model.apply)(parameters, x)
    run, made = fb.jax.quantize(model.apply, parameters, [rule], x, calibration=[x if seen is None else seen])
    return run(made, other), model.apply(parameters, other) if other is not x else want


def rule_of(**fields: Any) -> Any:
    return qwix.QuantizationRule(module_path=".*", **fields)


def solved_by_qwix(**fields: Any) -> tuple[Any, Any]:
    return qwix_after(DENSE, X, gptq.GptqRule(module_path=".*", **fields), seen=DATA)


def solved_by_fewbit(weight: str) -> tuple[Any, Any]:
    return fewbit_after(DENSE, X, fb.Rule(".*", weight=weight, algorithm="gptq"), seen=DATA)


def _cases() -> list[Defect]:
    q, t, f, rule = qwix_after, qwix_in_training, fewbit_after, fb.Rule
    static = {"weight_qtype": "int8", "act_qtype": "int8", "act_static_scale": True}
    long = normal(2, 9, 64, seed=4)
    found = [
        Defect("`x @ w`, int8, after a run of the float model", partial(t, Bare(), X, rule_of(weight_qtype="int8")),
               partial(f, Bare(), X, rule(".*", weight="int8"))),
        Defect("`x @ w`, int8, post-training", partial(q, Bare(), X, rule_of(weight_qtype="int8")),
               partial(f, Bare(), X, rule(".*", weight="int8"))),
        Defect("static range of 5 tokens, run on 9", partial(t, DENSE, long[:, :5], rule_of(**static), other=long),
               partial(f, DENSE, long[:, :5], rule(".*", weight="int8", input="int8 static"), other=long)),
        *(Defect(f"NVFP4, weights of std {std:g}",
                 partial(q, DENSE, X, rule_of(weight_qtype="nvfp4", tile_size=16), std=8 * std),
                 partial(f, DENSE, X, rule(".*", weight="nvfp4"), std=8 * std)) for std in (0.1, 0.005, 0.001)),
        Defect("inputs alone, int8", partial(q, DENSE, X, rule_of(act_qtype="int8")),
               partial(f, DENSE, X, rule(".*", weight="bf16", input="int8"))),
        Defect("convolution, int8 weights alone", partial(q, CONV, IMAGES, rule_of(weight_qtype="int8")),
               partial(f, CONV, IMAGES, rule(".*", weight="int8"))),
        Defect("convolution, int4 weights, int8 inputs",
               partial(q, CONV, IMAGES, rule_of(weight_qtype="int4", act_qtype="int8")),
               partial(f, CONV, IMAGES, rule(".*", weight="int4 channel", input="int8"))),
        Defect("embedding that is also the head, int8", partial(q, Tied(), TOKENS, rule_of(weight_qtype="int8")),
               partial(f, Tied(), TOKENS, rule(".*", weight="int8"))),
        Defect("bfloat16 product that is to be float32", partial(q, Wide(), HALF, rule_of(weight_qtype="int8")),
               partial(f, Wide(), HALF, rule(".*", weight="int8"))),
        Defect("uint4 weights", partial(q, DENSE, X, rule_of(weight_qtype="uint4")),
               partial(f, DENSE, X, rule(".*", weight="uint4 channel asym"))),
    ]  # fmt: skip
    solvers = {
        "int4": ({"weight_qtype": "int4"}, "int4 channel"),
        "int3": ({"weight_qtype": "int3"}, "int3 channel"),
        "int4 asymmetric": ({"weight_qtype": "int4", "weight_calibration_method": "minmax"}, "int4 channel asym"),
        "NF4": ({"weight_qtype": "nf4"}, "nf4 channel"),
    }
    solving = [
        Defect(f"GPTQ, {name}", partial(solved_by_qwix, **fields), partial(solved_by_fewbit, weight))
        for name, (fields, weight) in solvers.items()
    ]
    return found + solving


CASES = _cases()


def outcome(call: Callable[[], tuple[Any, Any]]) -> str:
    """Return in words what a call gives: how far it is from the float model, or why it gives nothing."""
    try:
        found, want = call()
    except Exception as error:  # whatever it is, it is what the table is about
        return f"{type(error).__name__}: {' '.join(str(error).split())[:70]}"
    if found.dtype != want.dtype:
        return f"{found.dtype} instead of {want.dtype}"
    if np.array_equal(found, want):
        return "stays float"
    return f"{float(jnp.linalg.norm(found - want) / jnp.linalg.norm(want)):.3f}"
