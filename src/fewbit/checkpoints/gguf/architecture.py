"""The families of language models that GGUF files are written for: how each is told, and what of it is stored apart.

Source: llama.cpp, src/llama-model.cpp (which keys and tensors it reads) and conversion/ (how weights are rearranged).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewbit.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A family of models in GGUF and in transformers."""

    #: `general.architecture`, also what its keys begin with.
    name: str
    #: `model_type` and class in transformers.
    model_type: str
    model_class: str
    #: Keys of the file, behind the name of the architecture, by those of the configuration.
    keys: Mapping[str, str]
    #: Names of modules in transformers, a `{}` for the number of the block.
    modules: tuple[str, ...]
    #: Whether rows of Q and K stand in the order of neighbours, (2i, 2i + 1), instead of halves, (i, i + d/2).
    neighbours: bool = False
    #: Whether norms multiply by 1 + weight, and the file holds that sum.
    adds_one: bool = False
    #: What the configuration may say that llama.cpp takes for granted, as (key, values).
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def require_known(self, configuration: Mapping[str, Any]) -> None:
        """Raise `CheckpointError` for a configuration that llama.cpp would run as another model."""
        for key, values in self.fixed.items():
            if key in configuration and configuration[key] not in values:
                raise CheckpointError(
                    f"{self.model_type} with {key} = {configuration[key]!r:.80} has no form in GGUF, where it is "
                    f"always {' or '.join(repr(value) for value in values)}; write another layout"
                )


_OUTSIDE = ("model.embed_tokens", "model.norm", "lm_head")
_BLOCK = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_FOUR_NORMS = (*_BLOCK, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_FUSED = (
    "input_layernorm", "self_attn.qkv_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_up_proj",
    "mlp.down_proj",
)  # fmt: skip
_GPT2_OUTSIDE = ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head")
_GPT2_BLOCK = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def _modules(outside: tuple[str, ...], block: tuple[str, ...], blocks: str = "model.layers") -> tuple[str, ...]:
    return (*outside, *(f"{blocks}.{{}}.{name}" for name in block))


_SIZES = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_HEADS = {"head_dim": "attention.key_length"}
_WINDOW = {"sliding_window": "attention.sliding_window"}
_CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_SILU = {"hidden_act": ("silu", "swish")}
_NO_MLP_BIAS = {**_SILU, "mlp_bias": (False, None)}
_GELU = {"hidden_activation": ("gelu_pytorch_tanh", None), "attention_bias": (False, None)}

LLAMA = Architecture(
    name="llama", model_type="llama", model_class="LlamaForCausalLM",
    modules=_modules(_OUTSIDE, _BLOCK),
    keys=_SIZES | _HEADS, neighbours=True,
    fixed=_NO_MLP_BIAS,
)  # fmt: skip
MISTRAL = Architecture(
    name="llama", model_type="mistral", model_class="MistralForCausalLM",
    modules=_modules(_OUTSIDE, _BLOCK),
    keys=_SIZES | _HEADS, neighbours=True,
    fixed=_SILU,
)  # fmt: skip
QWEN2 = Architecture(
    name="qwen2", model_type="qwen2", model_class="Qwen2ForCausalLM",
    modules=_modules(_OUTSIDE, _BLOCK),
    keys=_SIZES,
    fixed={**_SILU, "use_sliding_window": (False, None)},
)  # fmt: skip
QWEN3 = Architecture(
    name="qwen3", model_type="qwen3", model_class="Qwen3ForCausalLM",
    modules=_modules(_OUTSIDE, _BLOCK + _HEAD_NORMS),
    keys=_SIZES | _HEADS,
    fixed={**_SILU, "use_sliding_window": (False, None), "attention_bias": (False, None)},
)  # fmt: skip
GEMMA = Architecture(
    name="gemma", model_type="gemma", model_class="GemmaForCausalLM",
    modules=_modules(_OUTSIDE, _BLOCK),
    keys=_SIZES | _HEADS, adds_one=True,
    fixed={"hidden_act": ("gelu_pytorch_tanh", "gelu", None), "attention_bias": (False, None)},
)  # fmt: skip
GEMMA2 = Architecture(
    name="gemma2", model_type="gemma2", model_class="Gemma2ForCausalLM",
    modules=_modules(_OUTSIDE, _FOUR_NORMS),
    keys=_SIZES | _HEADS | _WINDOW | _CAPS,
    adds_one=True, fixed=_GELU,
)  # fmt: skip
GEMMA3 = Architecture(
    name="gemma3", model_type="gemma3_text", model_class="Gemma3ForCausalLM",
    modules=_modules(_OUTSIDE, _FOUR_NORMS + _HEAD_NORMS),
    keys=_SIZES | _HEADS | _WINDOW,
    adds_one=True,
    fixed={**_GELU, "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,)},
)  # fmt: skip
PHI3 = Architecture(
    name="phi3", model_type="phi3", model_class="Phi3ForCausalLM",
    modules=_modules(_OUTSIDE, _FUSED),
    keys=_SIZES | _WINDOW,
    fixed={**_SILU, "attention_bias": (False, None)},
)  # fmt: skip
GPT2 = Architecture(
    name="gpt2", model_type="gpt2", model_class="GPT2LMHeadModel",
    modules=_modules(_GPT2_OUTSIDE, _GPT2_BLOCK, "transformer.h"),
    keys={
        "n_positions": "context_length", "n_embd": "embedding_length", "n_inner": "feed_forward_length",
        "n_layer": "block_count", "n_head": "attention.head_count",
        "layer_norm_epsilon": "attention.layer_norm_epsilon",
    },
    fixed={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True, None),
        "scale_attn_by_inverse_layer_idx": (False, None), "add_cross_attention": (False, None),
    },
)  # fmt: skip

#: By `model_type`.
ARCHITECTURES = {
    own.model_type: own for own in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, PHI3, GPT2)
}  # fmt: skip


def architecture_of(configuration: Mapping[str, Any]) -> Architecture:
    """Return the family of a model by its `config.json`.

    Raises:
        CheckpointError: no language model of a family that is written, or of another form than llama.cpp runs.

    """
    kind = configuration.get("model_type")
    if kind not in ARCHITECTURES:
        what = f"model_type {kind!r:.80}" if kind else "a module without a configuration of transformers"
        raise CheckpointError(
            f"{what} is none that GGUF files are written for: {', '.join(ARCHITECTURES)}; write another layout"
        )
    found = ARCHITECTURES[str(kind)]
    classes = configuration.get("architectures") or [found.model_class]
    if found.model_class not in classes:
        raise CheckpointError(f"{classes[0]} is no language model; GGUF files hold {found.model_class} of this family")
    found.require_known(configuration)
    return found
