"""Genuine safetensors and GGUF files of several types, shapes and sizes, for others to break."""

from __future__ import annotations

import tempfile
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import save


def safetensors_files() -> list[bytes]:
    """Return files of several types, shapes and sizes."""
    rng = np.random.default_rng(0)
    small = {"weight": rng.standard_normal((4, 6)).astype(np.float32), "bias": np.zeros(4, np.float32)}
    every = {
        f"model.layers.0.{kind.__name__}": np.zeros((3, 8), kind)
        for kind in (np.float64, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_)
    }
    odd = {
        "scalar": np.ones((), np.float32), "empty": np.zeros((0, 7), np.float32), "a b/ü": np.zeros(3, np.int8),
        "bf16": np.zeros((2, 2), ml_dtypes.bfloat16), "f8": np.zeros(5, ml_dtypes.float8_e4m3fn),
    }  # fmt: skip
    many = {f"model.layers.{n}.mlp.up_proj.weight": np.zeros((2, 3), np.float16) for n in range(30)}
    return [save(small), save(every, {"format": "pt"}), save(odd, {"x": "y"}), save(many), save({})]


def gguf_files() -> list[bytes]:
    """Return files with values of every type, arrays, several alignments and quantized tensors."""
    return [_gguf_file(number) for number in range(4)]


def _gguf_file(number: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if number == 1:
            writer.add_custom_alignment(64)
        writer.add_block_count(2)
        writer.add_embedding_length(64)
        writer.add_layer_norm_rms_eps(1e-5)
        if number != 2:
            writer.add_token_list([f"w{n}" for n in range(20 * (number + 1))])
            writer.add_token_scores([0.5] * 20)
            writer.add_array("flags", [True, False])
            writer.add_bool("yes", True)
            writer.add_int64("long", -5)
            writer.add_float64("double", 0.1)
        for name in ("token_embd", "blk.0.attn_q", "blk.0.attn_k")[: number + 1]:
            writer.add_tensor(f"{name}.weight", np.ones((4, 64), np.float32 if number else np.float16))
        if number == 3:
            writer.add_tensor(
                "blk.0.ffn_up.weight", np.ones((4, 36), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0
            )
            writer.add_tensor("blk.0.x", np.ones((2, 3, 2, 2), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()
