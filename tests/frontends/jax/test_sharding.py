"""Quantized parameters lie where the float ones lay, on four devices of the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = r"""
import json, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import fewbit as fb

mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
def put(shape, *spec):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return jax.device_put(jnp.asarray(values), NamedSharding(mesh, P(*spec)))

def model(p, x):
    return jax.lax.scan(lambda h, own: (jnp.tanh(h @ own["up"]) @ own["down"], None), x, p)[0]

p = {"up": put((2, 64, 128), None, None, "model"), "down": put((2, 128, 64), None, "model", None)}
x = put((8, 64))
found = {}
for given in (None, "int8 g16", "int8"):
    rules = [fb.Rule(".*", weight="int4 g16", input=given)]
    run, q = fb.jax.quantize(model, p, rules, x)
    shapes = jax.tree.map(lambda own: jax.ShapeDtypeStruct(own.shape, own.dtype, sharding=own.sharding), p)
    _, abstract = fb.jax.quantize(model, shapes, rules, x)
    same = [a.sharding == b.sharding for a, b in zip(jax.tree.leaves(q), jax.tree.leaves(abstract), strict=True)]
    compiled = jax.jit(run).lower(q, x).compile()
    alone = jax.tree.map(lambda own: jnp.asarray(np.asarray(own)), q)
    difference = jnp.abs(np.asarray(compiled(q, x)) - np.asarray(run(alone, np.asarray(x)))).max()
    # Of each reduction between devices, what it computes: the largest, or a sum.
    text = compiled.as_text()
    names = re.findall(r"all-reduce(?:-start)?\([^\n]*to_apply=%?([\w.\-]+)", text)
    bodies = [re.search(rf"%?{re.escape(name)} [^\n]*\{{\n(.*?)\n\}}", text, re.S).group(1) for name in names]
    found[str(given)] = {
        "specs": {f"{n}.{k}": str(tuple(a.sharding.spec)) for n in q for k, a in q[n].arrays.items()},
        "abstract": all(same), "difference": float(difference),
        "largest": sum("maximum(" in own for own in bodies), "sums": sum(" add(" in own for own in bodies),
        "gathers": len(re.findall(r" all-gather(?:-start)?\(", text)),
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_codes_and_scales_are_cut_as_the_parameter_was(found):
    assert found["None"]["specs"] == {
        "up.codes": "(None, 'model', None)",
        "up.scale": "(None, 'model', None)",
        "down.codes": "(None, None, 'model')",
        "down.scale": "(None, None, 'model')",
    }


def test_shapes_alone_have_the_same_shardings(found):
    assert all(own["abstract"] for own in found.values())


def test_the_numbers_are_those_of_one_device(found):
    # Sums over devices are in another order, outputs in the tens; a rounded input between two codes may go to either.
    assert found["None"]["difference"] < 1e-3
    assert all(own["difference"] < 1.0 for own in found.values())


def test_groups_that_lie_within_a_device_need_no_collective_for_their_scales(found):
    assert found["int8 g16"]["largest"] == 0
    assert found["int8 g16"]["sums"] == found["None"]["sums"] >= 1
    # The scale of a token is that of numbers on all devices: the same reading of the program shows it.
    assert found["int8"]["largest"] >= 1
