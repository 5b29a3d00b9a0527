"""Genuine quantized checkpoints of every format and many kinds, in memory, for others to break."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import torch
from gguf_text import ARRAY, F32, KINDS, STRING, U32, GgufText, Tensor, Value
from safetensors.numpy import load, save
from torch import nn

import fewbit as fb
from fewbit.checkpoints.gguf.blocks import pack
from fewbit.qtensor import quantize
from fewbit.schemes.gguf import scheme_of

Files = dict[str, bytes]
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: Weight and input of the layer that is quantized.
COMPRESSED = (
    ("int4 g32", None), ("int4 g32 asym", None), ("int3 tensor asym", None), ("int8 channel", None), ("e4m3", None),
    ("nvfp4", None), ("mxfp4", None), ("mxfp6", None), ("mxfp8", None), ("fp16", None), ("int8", "int8 static"),
    ("int8 asym", "int8"), ("e4m3", "e4m3 static"), ("mxfp4", "mxfp4"), ("int8", "nvfp4 static"),
)  # fmt: skip
GGUF_KINDS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4",
    "NVFP4",
)  # fmt: skip


def module(width: int = 64, out: int = 32) -> nn.Module:
    """Return the float module that folders are loaded into."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, out), nn.Linear(out, 8))


def folders(method: str) -> list[Files]:
    """Return folders of one format; those of every form, and one in two files with an index."""
    made = {"gptq": _gptq_folders, "awq": _awq_folders, "compressed-tensors": _compressed_folders}[method]()
    return [*made, *(_sharded(own) for own in made[:2])]


def _gptq_folders() -> list[Files]:
    plain = {"quant_method": "gptq", "group_size": 32, "sym": False, "desc_act": False, "checkpoint_format": "gptq"}
    other = {"dynamic": {"-:^1$": {}, "+:^0$": {"bits": 8, "group_size": -1}}}
    return [
        _folder(plain | {"bits": 4}, _gptq(4, 2)),
        _folder(plain | {"bits": 3, "checkpoint_format": "gptq_v2"}, _gptq(3, 2)),
        _folder(plain | {"bits": 2, "sym": True} | other, _gptq(8, 1)),
        _folder(plain | {"bits": 4, "desc_act": True}, _gptq(4, 2, np.tile(np.arange(2), 32))),
        _folder(plain | {"bits": 2, "group_size": 16}, _gptq(2, 4)),
    ]


def _awq_folders() -> list[Files]:
    plain = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    words = np.random.default_rng(0).integers(0, 2**31, (64, 4), dtype=np.int32)
    scales = np.random.default_rng(1).random((2, 32)).astype(np.float16)
    layer = {"qweight": words, "qzeros": words[:2].copy(), "scales": scales}
    middle = layer | {"qzeros": np.full((2, 4), 0x88888888 - 2**32, np.int32)}
    return [_folder(plain, layer), _folder(plain, middle)]


def _gptq(bits: int, groups: int, index: np.ndarray | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(bits)
    words = rng.integers(0, 2**28, (64 * bits // 32, 32), dtype=np.int32)
    index = np.arange(64) // (64 // groups) if index is None else index
    zeros = np.full((groups, bits), {2: 0x55555555, 3: 0x11111111, 4: 0x11111111, 8: 0x7F7F7F7F}[bits], np.int32)
    scales = rng.random((groups, 32)).astype(np.float16)
    return {"qweight": words, "qzeros": zeros, "scales": scales, "g_idx": index.astype(np.int32)}


def _folder(quantization: dict, layer: dict[str, np.ndarray]) -> Files:
    numbers = np.random.default_rng(1).standard_normal((8, 32)).astype(np.float32)
    tensors = {f"0.{name}": array for name, array in layer.items()}
    tensors |= {"0.bias": numbers[0], "1.weight": numbers, "1.bias": numbers[0, :8]}
    configuration = {"hidden_size": 64, "quantization_config": quantization}
    return {"config.json": json.dumps(configuration).encode(), ONE: save(tensors, {"format": "pt"})}


def _compressed_folders() -> list[Files]:
    made = []
    with tempfile.TemporaryDirectory() as root:
        for number, (weight, given) in enumerate(COMPRESSED):
            seen = [torch.randn(20, 64)] if given and "static" in given else None
            recipe = fb.Recipe([fb.Rule("0", weight=weight, input=given), fb.keep("1")])
            result = fb.quantize(module(), recipe, to="compressed-tensors", calibration=seen)
            path = result.save(Path(root) / str(number))
            made.append({name: (path / name).read_bytes() for name in ("config.json", ONE)})
        recipe = fb.Recipe([fb.Rule("0", weight="int4 g32"), fb.Rule("1", weight="int8 channel")])
        path = fb.quantize(module(), recipe, to="compressed-tensors").save(Path(root) / "mixed")
        made.append({name: (path / name).read_bytes() for name in ("config.json", ONE)})
    return [*made, _with_caches(made[0])]


def _with_caches(folder: Files) -> Files:
    """Return the folder with ranges of a cache beside."""
    configuration = json.loads(folder["config.json"])
    said = {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "tensor", "dynamic": False}
    configuration["quantization_config"]["kv_cache_scheme"] = said
    numbers = {"scale": np.asarray([0.5], np.float32), "zero_point": np.asarray([3], np.int8)}
    ranges = {f"attn.{side}_{part}": numbers[part] for side in "kv" for part in numbers}
    return {"config.json": json.dumps(configuration).encode(), ONE: save(load(folder[ONE]) | ranges, {"format": "pt"})}


def _sharded(folder: Files) -> Files:
    """Return the same folder with its tensors in two files."""
    tensors = load(folder[ONE])
    names = sorted(tensors)
    parts = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    files = {part: save({name: tensors[name] for name in own}, {"format": "pt"}) for part, own in parts.items()}
    placed = {name: part for part, own in parts.items() for name in own}
    index = {"metadata": {"total_size": sum(a.nbytes for a in tensors.values())}, "weight_map": placed}
    return {"config.json": folder["config.json"], INDEX: json.dumps(index).encode(), **files}


def gguf_models() -> list[GgufText]:
    """Return Llamas of one block, each with another type of blocks, tied and not."""
    return [_llama(kind, tied=number % 3 == 0) for number, kind in enumerate(GGUF_KINDS)]


def _llama(kind: str, *, tied: bool) -> GgufText:
    rng, wide = np.random.default_rng(len(kind)), 256
    sizes = {"context_length": 16, "embedding_length": 64, "feed_forward_length": wide, "block_count": 1}
    heads = {"attention.head_count": 2, "attention.head_count_kv": 1, "vocab_size": 12}
    values = [Value("general.architecture", STRING, "llama")]
    values += [Value(f"llama.{name}", U32, own) for name, own in {**sizes, **heads}.items()]
    values += [Value("llama.attention.layer_norm_rms_epsilon", F32, 1e-5), Value("llama.rope.freq_base", F32, 1e4)]
    values += [Value("tokenizer.ggml.tokens", ARRAY, (STRING, [f"w{n}" for n in range(12)]))]
    values += [Value("tokenizer.ggml.bos_token_id", U32, 1)]
    shapes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64),
              "ffn_gate": (wide, 64), "ffn_up": (wide, 64), "ffn_down": (64, wide)}  # fmt: skip
    tensors = [_tensor("token_embd.weight", rng.standard_normal((12, 64)), "F16")]
    tensors += [_tensor(f"blk.0.{name}.weight", np.ones(64), "F32") for name in ("attn_norm", "ffn_norm")]
    for name, shape in shapes.items():
        fits = shape[1] % 256 == 0 or kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4")
        tensors.append(_tensor(f"blk.0.{name}.weight", rng.standard_normal(shape), kind if fits else "Q8_0"))
        if tensors[-1].kind == KINDS["NVFP4"] and name in ("attn_q", "ffn_down"):
            tensors.append(_tensor(f"blk.0.{name}.scale", np.full(1, 0.5), "F32"))
    tensors.append(_tensor("output_norm.weight", np.ones(64), "F32"))
    return GgufText(values, tensors if tied else [*tensors, _tensor("output.weight", np.ones((12, 64)), "Q8_0")])


def _tensor(name: str, numbers: np.ndarray, kind: str) -> Tensor:
    floats = {"F32": np.float32, "F16": np.float16}
    stored = numbers.astype(np.float32)
    data = stored.astype(floats[kind]) if kind in floats else pack(quantize(stored, scheme_of(kind)), kind)
    return Tensor(name, list(numbers.shape[::-1]), KINDS[kind], data.tobytes())


def matrices() -> list[GgufText]:
    """Return importance matrices in GGUF form."""
    values = [Value("general.type", STRING, "imatrix"), Value("imatrix.chunk_count", U32, 4),
              Value("imatrix.chunk_size", U32, 512), Value("imatrix.datasets", ARRAY, (STRING, ["a.txt"]))]  # fmt: skip
    rng, tensors = np.random.default_rng(0), []
    for name, shape in {"blk.0.attn_q.weight": (1, 8), "blk.0.ffn_down_exps.weight": (3, 4)}.items():
        tensors += [_tensor(f"{name}.in_sum2", rng.random(shape), "F32")]
        tensors += [_tensor(f"{name}.counts", np.full((shape[0], 1), 7.0), "F32")]
    return [GgufText(values, tensors), GgufText(values[:1], tensors[:2])]


def legacy_entries() -> list[tuple[bytes, int, list[float]]]:
    """Return the entries of an importance matrix in the older form: name, calls, numbers."""
    return [(b"blk.0.attn_q.weight", 4, [1.0, 8.0, 0.5]), (b"blk.0.ffn_up.weight", 4, [2.0, 0.0])]


def legacy(entries, count: int | None = None, tail: bytes = struct.pack("<ii", 7, 4) + b"wiki") -> bytes:
    """Return an importance matrix in the older form."""
    content = struct.pack("<i", len(entries) if count is None else count)
    for name, calls, values in entries:
        content += struct.pack("<i", len(name)) + name + struct.pack(f"<ii{len(values)}f", calls, len(values), *values)
    return content + tail
