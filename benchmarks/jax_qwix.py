"""MiniLM in Flax NNX quantized by Qwix, mode by mode."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx

from fewbit.evaluation.text import read_text
from jax_carrying import carried
from jax_minilm import NnxEncoder, minilm_folder, torch_name

#: The linear layers; attention itself stays float in both.
LAYERS = r"layers/\d+/(query|key|value|out|up|down)"


@dataclass(frozen=True)
class Case:
    """A rule of Qwix, and how it is used there."""

    rule: Any
    #: The forward of training, with float parameters.
    trains: bool = False

    def by_qwix(self, model: Any, tokens: Any, mask: Any) -> tuple[Any, float]:
        """Return the model under jit, a function of tokens and mask, and the megabytes of its linear layers."""
        if self.trains or self.rule.act_static_scale:
            made = qwix.quantize_model(model, qwix.QtProvider([self.rule]), tokens, mask)
            if not self.trains:
                made(tokens, mask)
                made = qwix.quantize_model(made, qwix.PtqProvider([self.rule]), tokens, mask)
                made(tokens, mask)  # takes the statistics, which go away
        else:
            made = qwix.quantize_model(model, qwix.PtqProvider([self.rule]), tokens, mask)
        definition, state = nnx.split(made)
        run = jax.jit(lambda own, tokens, mask: nnx.merge(definition, own)(tokens, mask))
        return partial(run, state), megabytes(state)


def _rule(**fields: Any) -> Any:
    return qwix.QuantizationRule(module_path=LAYERS, **fields)


_STATIC = {"weight_qtype": "int8", "act_qtype": "int8", "act_static_scale": True, "act_batch_axes": (0, 1)}
CASES = {
    "int8": Case(_rule(weight_qtype="int8")),
    "int4": Case(_rule(weight_qtype="int4")),
    "int4, tiles of 32": Case(_rule(weight_qtype="int4", tile_size=32)),
    "int4, tiles of 128": Case(_rule(weight_qtype="int4", tile_size=128)),
    "NF4, tiles of 64": Case(_rule(weight_qtype="nf4", tile_size=64)),
    "e4m3": Case(_rule(weight_qtype="float8_e4m3fn")),
    "MXFP4": Case(_rule(weight_qtype="mxfp4", tile_size=32)),
    "NVFP4": Case(_rule(weight_qtype="nvfp4", tile_size=16)),
    "int8, inputs int8": Case(_rule(weight_qtype="int8", act_qtype="int8")),
    "int4, inputs int8, tiles of 128": Case(_rule(weight_qtype="int4", act_qtype="int8", tile_size=128)),
    "e4m3, inputs e4m3": Case(_rule(weight_qtype="float8_e4m3fn", act_qtype="float8_e4m3fn")),
    "int8, inputs int8 static": Case(_rule(**_STATIC)),
    "int8, inputs int8, training": Case(_rule(weight_qtype="int8", act_qtype="int8"), trains=True),
}


def minilm(model: Any) -> Any:
    """Return a `transformers.BertModel` as a Flax NNX module."""
    definition, state = nnx.split(nnx.eval_shape(lambda: NnxEncoder(model.config, nnx.Rngs(0))))
    return nnx.merge(definition, carried(state, model.state_dict(), torch_name))


def sentences(count: int, length: int) -> tuple[Any, Any]:
    """Return tokens and mask of sentences from the text that every Python carries."""
    from transformers import AutoTokenizer

    words = read_text(None)[0].split()
    texts = [" ".join(words[at : at + length]) for at in range(0, count * length, length)]
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    found = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="np")
    return found["input_ids"].astype(np.int32), found["attention_mask"].astype(np.int32)


def error(found: Any, want: Any, mask: Any) -> float:
    """Return the relative error of hidden states where there are words."""
    seen = mask[..., None]
    return float(jnp.linalg.norm((found - want) * seen) / jnp.linalg.norm(want * seen))


def megabytes(tree: Any) -> float:
    """Return the megabytes of what belongs to the linear layers; types of fewer than 8 bits take their bits."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = ("query", "key", "value", "out", "up", "down")
    own = [leaf for path, leaf in leaves if any(f"'{name}'" in jax.tree_util.keystr(path) for name in names)]
    return sum(leaf.size * _bits(leaf.dtype) for leaf in own) / 8e6


def _bits(dtype: Any) -> int:
    kind = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    return int(kind(dtype).bits)
