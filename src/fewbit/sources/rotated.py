"""`smollm2-rotated`: the function of smollm2 on weights that lie on no grid, for judging what rounding costs.

With x -> x Q in the residual stream, what reads it turns from W into W diag(gain) Q, what writes it from W into Q^T W.
RMSNorm without gain commutes with Q. Ashkboos et al., "SliceGPT", arXiv:2401.15024, section 3; "QuaRot", 2404.00456.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fewbit.errors import NotYetError
from fewbit.sources.demo import Demo, smollm2
from fewbit.sources.unloaded import Unloaded

_SEED = 0


@dataclass(frozen=True)
class RotatedDemo(Demo):
    """The demo model, rotated after loading; head and embedding are no longer tied."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        return "smollm2-rotated"

    def load(self) -> Any:
        """Return the model in float32, ready to run."""
        model = super().load()
        rotate(model, seed=_SEED)
        return model

    def unloaded(self) -> Unloaded:
        """It is rotated as a whole, after loading."""
        raise NotYetError(f"{self.name} is rotated when all of it is there; use fewbit.quantize")

    @cached_property
    def _config(self) -> Any:
        config = super()._config
        config.tie_word_embeddings = False
        return config


def smollm2_rotated() -> RotatedDemo:
    """Return the source of the rotated demo model.

    Raises:
        MissingExtraError: the package of the demo model is not installed.

    """
    demo = smollm2()
    return RotatedDemo(demo.folder, demo.gguf, demo.header)


def rotate(model: Any, *, seed: int) -> None:
    """Fold the norms of a `LlamaForCausalLM` without biases and rotate its residual stream, in place.

    All in float64, rounded once to the type of each weight. Other architectures hang their parts elsewhere: this is
    how the demo model is made, no transform.
    """
    import torch

    stream = model.model
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    rotation = torch.from_numpy(orthogonal(model.config.hidden_size, seed))
    readers = [(stream.norm, [model.lm_head])]
    for block in stream.layers:
        attention, mlp = block.self_attn, block.mlp
        readers.append((block.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]))
        readers.append((block.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]))
        for writer in (attention.o_proj, mlp.down_proj):
            _multiply(writer.weight.data.T, rotation)
    for norm, linears in readers:
        for linear in linears:
            _multiply(linear.weight.data, norm.weight.data.double()[:, None] * rotation)
        norm.weight.data.fill_(1.0)
    _multiply(stream.embed_tokens.weight.data, rotation)


def _multiply(weight: Any, matrix: Any) -> None:
    """Replace `weight` by `weight @ matrix`, a few rows at a time: an embedding in float64 would be the peak."""
    for rows in weight.split(4096):
        rows.copy_(rows.double() @ matrix)


def orthogonal(width: int, seed: int) -> Any:
    """Return an orthogonal float64 matrix, uniform over all; `RandomState` draws the same numbers in every NumPy."""
    import numpy as np

    q, r = np.linalg.qr(np.random.RandomState(seed).standard_normal((width, width)))
    return q * np.sign(np.diag(r))
