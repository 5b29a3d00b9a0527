"""Parameters are solved behind the quantized ones before them, in the order of the function, as in PyTorch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax
from torch import nn

import fewbit as fb
from fewbit.errors import CalibrationError, NonFiniteError


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


DEPTH, WIDTH = 3, 16
P = {"stack": normal(DEPTH, WIDTH, WIDTH) * 0.4, "head": normal(WIDTH, 4, seed=1)}
BATCHES = [normal(20, WIDTH, seed=at) for at in (2, 3)]


def stack(p, x):
    h = lax.scan(lambda h, w: (jax.nn.relu(h @ w) + h, None), x, p["stack"])[0]
    return h @ p["head"]


def rules(weight="int3 g8", given=None, algorithm="gptq"):
    return [fb.Rule(".*", weight=weight, input=given, algorithm=algorithm)]


def by_hand(own):
    """Return the matrices solved one by one, each on what those before it give."""
    h, found = list(BATCHES), []
    for at in range(DEPTH):
        alone = {"w": P["stack"][at]}
        run, quantized = fb.jax.quantize(lambda p, x: x @ p["w"], alone, own, h[0], calibration=h)
        found.append(quantized["w"])
        h = [jax.nn.relu(run(quantized, part)) + part for part in h]
    return found


class Chain(nn.Module):
    """The same as a module."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, 4, bias=False)
        for layer, own in zip([*self.layers, self.head], [*P["stack"], P["head"]], strict=True):
            layer.weight.data = torch.tensor(np.asarray(own)).T.contiguous()

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x)) + x
        return self.head(x)


def same_codes(ours, theirs):
    # Sums of float32 in another order may move a code of GPTQ.
    return np.mean(np.asarray(ours) == np.asarray(theirs)) > 0.98


def test_each_matrix_is_solved_on_what_the_quantized_ones_before_it_give():
    own = rules(given="int8 static")
    run, behind = fb.jax.quantize(stack, P, own, BATCHES[0], calibration=BATCHES, sequential=True)
    for at, want in enumerate(by_hand(own)):
        for key, arrays in behind["stack"].arrays.items():
            assert same_codes(arrays[at], want.arrays[key]), (key, at)
    assert run(behind, BATCHES[0][:3]).shape == (3, 4)


def test_codes_are_those_of_pytorch_behind_quantized_layers():
    own = rules()
    _, ahead = fb.jax.quantize(stack, P, own, BATCHES[0], calibration=BATCHES)
    _, behind = fb.jax.quantize(stack, P, own, BATCHES[0], calibration=BATCHES, sequential=True)
    batches = [torch.tensor(np.asarray(batch)) for batch in BATCHES]
    model = fb.quantize(Chain(), fb.Recipe(own), calibration=batches, dtype="float32").model
    codes = [layer.qtensor.codes for layer in model.layers]
    for at, (first, last) in enumerate(zip(ahead["stack"].qtensors(), behind["stack"].qtensors(), strict=True)):
        assert same_codes(last.codes, codes[at])
        assert same_codes(first.codes, codes[at]) == (at == 0)


def test_it_helps_the_output_and_each_batch_costs_one_forward():
    steps = []

    def counted(p, x):
        def step(h, w):
            jax.debug.callback(lambda _: steps.append(1), h[0, 0], ordered=False)
            return jax.nn.relu(h @ w) + h, None

        return lax.scan(step, x, p["stack"])[0] @ p["head"]

    own = rules("int2 g8")
    errors = {}
    for sequential in (False, True):
        steps.clear()
        _, quantized = fb.jax.quantize(counted, P, own, BATCHES[0], calibration=BATCHES, sequential=sequential)
        jax.effects_barrier()
        assert len(steps) == DEPTH * len(BATCHES)
        found = stack(fb.jax.dequantize(quantized), jnp.concatenate(BATCHES))
        errors[sequential] = float(jnp.square(found - stack(P, jnp.concatenate(BATCHES))).mean())
    assert errors[True] < errors[False]


def test_batches_that_part_are_refused():
    p = {"a": normal(8, 8), "b": normal(8, 8, seed=1)}

    def either(p, x):
        return lax.cond(x.sum() > 0, lambda: x @ p["a"], lambda: x @ p["b"])

    batches = [jnp.ones((4, 8)), -jnp.ones((4, 8))]
    with pytest.raises(CalibrationError, match="different ways through the function: a and b come next"):
        fb.jax.quantize(either, p, rules(), batches[0], calibration=batches, sequential=True)
    # One way through it is no problem, but the other is not reached.
    _, quantized = fb.jax.quantize(either, p, rules(), batches[0], calibration=batches[:1], sequential=True)
    assert set(quantized) == {"a", "b"}


def test_what_is_missing_is_said():
    with pytest.raises(CalibrationError, match="needs data"):
        fb.jax.quantize(stack, P, rules(), BATCHES[0], sequential=True)
    broken = {**P, "stack": P["stack"].at[1, 2, 3].set(jnp.nan)}
    with pytest.raises(NonFiniteError, match="stack holds NaN"):
        fb.jax.quantize(stack, broken, rules(), BATCHES[0], calibration=BATCHES, sequential=True)


def test_what_needs_no_data_is_quantized_ahead():
    own = [fb.Rule("head", weight="int4 channel"), *rules()]
    _, quantized = fb.jax.quantize(stack, P, own, BATCHES[0], calibration=BATCHES, sequential=True)
    _, alone = fb.jax.quantize(stack, P, own[:1], BATCHES[0])
    np.testing.assert_array_equal(quantized["head"].arrays["codes"], alone["head"].arrays["codes"])
