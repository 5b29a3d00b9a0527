"""Quantized parameters in safetensors files and in Orbax checkpoints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

import fewbit as fb
from fewbit.errors import CheckpointError

X = jnp.ones((2, 32))


def model(p, x):
    h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["stack"])[0]
    return h @ p["last"]["kernel"] + p["last"]["bias"]


def parameters(dtype=jnp.float32):
    random = np.random.default_rng(0)
    last = {"kernel": jnp.asarray(random.normal(size=(32, 8)), dtype), "bias": jnp.ones(8, dtype)}
    return {"stack": jnp.asarray(random.normal(size=(2, 32, 32)), dtype), "last": last}


RULES = [fb.Rule("stack", weight="int3 g16 asym", input="int8 static"), fb.Rule("last.kernel", weight="nvfp4")]


def quantized(dtype=jnp.float32):
    return fb.jax.quantize(model, parameters(dtype), RULES, X.astype(dtype), calibration=[X.astype(dtype)])


def shapes(dtype=jnp.float32, rules=RULES):
    own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), parameters(dtype))
    return fb.jax.quantize(model, own, rules, X.astype(dtype))[1]


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for want, got in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_file_comes_back_into_shapes_alone(tmp_path, dtype):
    run, own = quantized(dtype)
    path = fb.jax.save(own, tmp_path / "model.safetensors")
    assert path == tmp_path / "model.safetensors"
    loaded = fb.jax.load(path, shapes(dtype))
    assert_equal(own, loaded)
    np.testing.assert_array_equal(run(loaded, X.astype(dtype)), run(own, X.astype(dtype)))


def test_the_safetensors_library_reads_the_names_and_packed_codes(tmp_path):
    fb.jax.save(quantized()[1], tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert sorted(file.keys()) == sorted([
            "stack.codes", "stack.scale", "stack.zero_point", "stack.input_scale", "stack.input_zero_point",
            "stack.scheme", "last.kernel.codes", "last.kernel.scale.codes", "last.kernel.scale.scale",
            "last.kernel.scheme", "last.bias",
        ])  # fmt: skip
        assert file.get_tensor("stack.codes").shape == (2, 32, 12)  # 32 codes of 3 bits are 12 bytes
        assert file.get_tensor("stack.scheme").tobytes() == b"int3 g16 asym, input int8 tensor asym static"


def test_a_file_of_other_rules_is_refused(tmp_path):
    path = fb.jax.save(quantized()[1], tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="exists"):
        fb.jax.save({}, path)
    other = [RULES[0], fb.Rule("last.kernel", weight="nf4 g16")]
    with pytest.raises(CheckpointError, match=r"last\.kernel is 'nvfp4' in the file, not 'nf4 g16'"):
        fb.jax.load(path, shapes(rules=other))
    with pytest.raises(CheckpointError, match=r"last\.kernel is float in the file, not 'nvfp4'"):
        fb.jax.load(fb.jax.save(parameters(), tmp_path / "float.safetensors"), shapes())
    with pytest.raises(CheckpointError, match=r"also has extra"):
        fb.jax.load(fb.jax.save({**quantized()[1], "extra": X}, tmp_path / "more.safetensors"), shapes())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        fb.jax.load(path, shapes())
    with pytest.raises(CheckpointError, match="is no file"):
        fb.jax.load(tmp_path / "none", shapes())


def test_orbax_saves_and_restores_them(tmp_path):
    checkpoints = pytest.importorskip("orbax.checkpoint")
    own = quantized()[1]
    with checkpoints.StandardCheckpointer() as keeper:
        keeper.save(tmp_path / "orbax", own)
        keeper.wait_until_finished()
        assert_equal(own, keeper.restore(tmp_path / "orbax", shapes()))
