"""What the bytes of a checkpoint stand for, by the tables of its format: an oracle that shares no code with fewbit.

They believe every word, so what they return for a file that is in order is right, and a lie leads them anywhere.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from genuine_checkpoints import INDEX, ONE
from safetensors import deserialize

Arrays = dict[str, np.ndarray]
_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_AWQ = (0, 4, 1, 5, 2, 6, 3, 7)  # which nibble holds a column
_FLOATS = {4: ml_dtypes.float4_e2m1fn, 6: ml_dtypes.float6_e2m3fn, 8: ml_dtypes.float8_e4m3fn}


def tensors_of(folder: Path) -> Arrays:
    """Return every tensor of a folder."""
    index = folder / INDEX
    names = set(json.loads(index.read_bytes())["weight_map"].values()) if index.exists() else {ONE}
    found = {}
    for name in names:
        for own, entry in deserialize((folder / name).read_bytes()):
            found[own] = np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def _fields(words: np.ndarray, bits: int) -> np.ndarray:
    """Return the `bits`-bit numbers in the bytes of each row, low bits first."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    whole = stream.shape[-1] // bits * bits
    return stream[..., :whole].reshape(*words.shape[:-1], -1, bits).astype(np.int32) @ (1 << np.arange(bits))


def gptq(tensors: Arrays, quantization: dict[str, Any]) -> Arrays:
    """Return the weights (out, in) of a GPTQ folder by layer."""
    found = {}
    for name in [own.removesuffix(".qweight") for own in tensors if own.endswith(".qweight")]:
        own = dict(quantization)
        for pattern, change in (quantization.get("dynamic") or {}).items():
            if re.match(re.sub(r"^[+-]:", "", pattern), name):
                own |= change
                break
        bits, scales = own["bits"], tensors[f"{name}.scales"].astype(np.float32)
        codes = _fields(tensors[f"{name}.qweight"].T, bits)
        zeros = _fields(tensors[f"{name}.qzeros"], bits) + (quantization.get("checkpoint_format") != "gptq_v2")
        size = own.get("group_size", -1)
        index = tensors.get(f"{name}.g_idx", np.arange(codes.shape[1]) // (codes.shape[1] if size == -1 else size))
        found[name] = (codes - zeros[index].T).astype(np.float32) * scales[index].T
    return found


def awq(tensors: Arrays, quantization: dict[str, Any]) -> Arrays:
    """Return the weights (out, in) of an AWQ folder by layer."""
    found = {}
    for name in [own.removesuffix(".qweight") for own in tensors if own.endswith(".qweight")]:
        scales = tensors[f"{name}.scales"].astype(np.float32)
        out = scales.shape[1]
        nibbles = (_fields(tensors[f"{name}.{own}"], 4).reshape(-1, out // 8, 8) for own in ("qweight", "qzeros"))
        codes, zeros = (own[:, :, _AWQ].reshape(-1, out) for own in nibbles)
        size = quantization["group_size"]
        index = np.arange(len(codes)) // (len(codes) if size == -1 else size)
        found[name] = ((codes - zeros[index]).astype(np.float32) * scales[index]).T
    return found


def compressed(tensors: Arrays, quantization: dict[str, Any]) -> Arrays:
    """Return the weights (out, in) of a compressed-tensors folder by layer."""
    found = {}
    for name in [own.removesuffix(".weight_scale") for own in tensors if own.endswith(".weight_scale")]:
        own = {key.rpartition(".")[2]: array for key, array in tensors.items() if key.rpartition(".")[0] == name}
        found[name] = _compressed(own, _said(name, quantization))
    return found


def _said(name: str, quantization: dict[str, Any]) -> dict[str, Any]:
    groups = list(quantization["config_groups"].values())
    tests = (
        lambda target: target == name,
        lambda target: target.startswith("re:") and re.match(target[3:], name),
        lambda target: target == "Linear",
    )
    return next(own["weights"] for test in tests for own in groups if any(test(target) for target in own["targets"]))


def _compressed(own: Arrays, said: dict[str, Any]) -> np.ndarray:
    bits, scale = said["num_bits"], own["weight_scale"]
    if scale.dtype == np.uint8:
        scale = np.ldexp(np.float32(1), scale.astype(np.int32) - 127)
    scale = scale.astype(np.float32)
    if "weight_global_scale" in own:
        scale = scale * (np.float32(1) / own["weight_global_scale"].reshape(()))
    if said.get("type", "int") == "float":
        patterns = _fields(own["weight_packed"], bits) if "weight_packed" in own else own["weight"].view(np.uint8)
        numbers = patterns.astype(np.uint8).view(_FLOATS[bits]).astype(np.float32)
    elif "weight_packed" in own:
        out, width = own["weight_shape"].tolist()
        numbers = _fields(own["weight_packed"].reshape(out, -1), bits)[:, :width] - (1 << bits - 1)
    else:
        numbers = own["weight"].astype(np.int32)
    scale = scale.reshape(len(numbers) if scale.size >= len(numbers) else 1, -1)
    zero = own.get("weight_zero_point", np.zeros(1, np.int8))
    if zero.dtype == np.int32:
        zero = _fields(zero.T, bits)[:, : len(numbers)].T - (1 << bits - 1)
    zero = np.broadcast_to(zero.reshape(scale.shape) if zero.size == scale.size else zero, scale.shape)
    groups = scale.shape[1]
    repeats = numbers.shape[1] // groups
    zero, scale = (np.repeat(np.broadcast_to(own, (len(numbers), groups)), repeats, axis=1) for own in (zero, scale))
    return (numbers - zero).astype(np.float32) * scale


def casts(tensors: Arrays, configuration: dict[str, Any]) -> Arrays:
    """Return the weights that are cast, by layer."""
    names = [name for entry in configuration.get("fewbit_casts", []) for name in entry["layers"]]
    weights = {name: tensors[f"{name}.weight"].astype(np.float32) for name in names}
    return {name: own.reshape(len(own), -1) for name, own in weights.items()}


def gguf_tensors(path: Path) -> Arrays:
    """Return the weights of a Llama in GGUF by their name in the file, rows of heads in the order of the model."""
    reader = gguf.GGUFReader(path)
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    count = {own: int(reader.fields[key].contents()) if key in reader.fields else None for own, key in heads.items()}
    whole = {own.name: own.data for own in reader.tensors}
    found = {}
    for own in reader.tensors:
        numbers = gguf.dequantize(own.data, own.tensor_type).reshape(tuple(own.shape)[::-1]).astype(np.float32)
        scale = whole.get(own.name.removesuffix(".weight") + ".scale")
        if own.tensor_type == gguf.GGMLQuantizationType.NVFP4 and scale is not None:
            numbers = numbers * scale
        part = own.name.split(".")[2:3]
        if part and part[0] in count and own.name.endswith((".weight", ".bias")):
            rows = count[part[0]] or count["attn_q"]
            numbers = numbers.reshape(rows, -1, 2, *numbers.shape[1:]).swapaxes(1, 2).reshape(numbers.shape)
        found[own.name] = numbers
    return found


def matrix(path: Path) -> Arrays:
    """Return the sums of an importance matrix in GGUF form."""
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    return {own.name: own.data for own in reader.tensors}
