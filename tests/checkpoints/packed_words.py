"""What the tables of the GPTQ and AWQ layouts say, one number at a time: an oracle that shares no code with fewbit."""

import json
from math import gcd

import numpy as np
from safetensors.numpy import load_file

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


def field(words, index, bits):
    """Return number `index` of a stream of `bits`-bit numbers in 32-bit words, low bits first."""
    value = 0
    for bit in range(bits):
        place = index * bits + bit
        word = int(words[place // 32]) & 0xFFFFFFFF
        value |= (word >> place % 32 & 1) << bit
    return value


def gptq_weight(tensors, name, bits, *, v2):
    """Return the weight (out, in) of one layer as the table of GPTQ's layout spells it, in float32."""
    qweight, qzeros, scales, g_idx = (tensors[f"{name}.{own}"] for own in ("qweight", "qzeros", "scales", "g_idx"))
    out, width = qweight.shape[1], qweight.shape[0] * 32 // bits
    assert qzeros.shape == (scales.shape[0], out * bits // 32)
    assert g_idx.shape == (width,)
    weight = np.zeros((out, width), np.float32)
    for o in range(out):
        for i in range(width):
            g = int(g_idx[i])
            zero = field(qzeros[g], o, bits) + (0 if v2 else 1)
            weight[o, i] = np.float32(field(qweight[:, o], i, bits) - zero) * np.float32(scales[g, o])
    return weight


def awq_weight(tensors, name, group):
    """Return the weight (out, in) of one layer as the table of AWQ's layout spells it, in float32."""
    qweight, qzeros, scales = (tensors[f"{name}.{own}"] for own in ("qweight", "qzeros", "scales"))
    width, out = qweight.shape[0], qweight.shape[1] * 8
    weight = np.zeros((out, width), np.float32)
    for c in range(out // 8):
        for k, column in enumerate(AWQ_COLUMNS):
            o = 8 * c + column
            for i in range(width):
                zero = int(qzeros[i // group, c]) >> 4 * k & 15
                code = int(qweight[i, c]) >> 4 * k & 15
                weight[o, i] = np.float32(code - zero) * np.float32(scales[i // group, o])
    return weight


def unit(bits):
    """Return how many numbers fill whole words."""
    return 32 // gcd(32, bits)


def read(folder):
    """Return the tensors of a folder and its quantization_config."""
    configuration = json.loads((folder / "config.json").read_text())
    return load_file(folder / "model.safetensors"), configuration["quantization_config"]
