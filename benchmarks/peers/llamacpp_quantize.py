"""llama.cpp's quantizer (the build of ik_llama.cpp) on a Llama: all linear layers but the head, which stays float16.

Run: llamacpp/bin/python llamacpp_quantize.py --model FOLDER --tokens FILE.npy --scheme IQ4_XS --out FILE
Source: `llama-quantize --imatrix`; the importance matrix is the mean square of each layer's inputs on the tokens, as
llama-imatrix gathers it, in its file layout. What GGUF stores is read back by PyPI's `gguf`.
"""

from __future__ import annotations

import argparse
import re
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import ik_llama_cpp
import numpy as np
import torch
from peer import finish, linear_layers, load, parsed, read_tokens, timed, versions

#: The part of a layer's name in each format.
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
#: Embedding and head stay float16.
KEPT = ("--token-embedding-type", "f16", "--output-tensor-type", "f16")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--tokens", "--out"):
        words.add_argument(name, type=Path, required=True)
    words.add_argument("--scheme", required=True, help="a type of llama-quantize, such as IQ4_XS")
    words.add_argument("--pure", action="store_true", help="one type for all layers in the place of its mixture")
    given = parsed(words)
    found = versions("ik-llama-cpp-python", "gguf", "transformers", "torch")
    model = load(given.model)
    tokens = read_tokens(given.tokens, model.config.vocab_size)
    shapes = {name: layer.weight.shape for name, layer in linear_layers(model).items()}
    weights: dict[str, torch.Tensor] = {}
    bits: list[float] = []

    def work() -> None:
        with tempfile.TemporaryDirectory(dir=given.out.parent) as folder:
            float_file, matrix, file = (Path(folder) / name for name in ("float.gguf", "matrix.dat", "out.gguf"))
            write_gguf(model, float_file)
            write_matrix(importance(model, tokens), matrix, len(tokens))
            quantize(float_file, file, matrix, given.scheme, kept=(*KEPT, *(["--pure"] if given.pure else [])))
            own, size = read_layers(model, file, shapes)
            weights.update(own)
            bits.append(size)

    cost = timed(work)
    finish(weights, shapes, given, **cost, bits=bits[0], calibration=tokens.shape, versions=found)


def gguf_name(name: str) -> str:
    """Return what llama.cpp calls the layer or norm `name` of transformers."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    return f"blk.{found[1]}.{NAMES[found[2]]}" if found else outside[name]


def write_gguf(model: Any, path: Path) -> None:
    """Write the float model, without a tokenizer: none is needed to quantize or to run on tokens."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, parameter in model.named_parameters():
        values = parameter.detach().float()
        heads = heads_of(model, name.removesuffix(".weight"))
        values = permuted(values, heads) if heads else values
        writer.add_tensor(f"{gguf_name(name.removesuffix('.weight'))}.weight", values.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def heads_of(model: Any, name: str) -> int:
    """Return the heads of a query or key projection, whose rows llama.cpp has in another order; else 0."""
    config = model.config
    own = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return own.get(name.rpartition(".")[2], 0)


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows of each head with its two halves interleaved."""
    rows = weight.reshape(heads, 2, -1, weight.shape[1])
    return rows.transpose(1, 2).reshape(weight.shape)


def restored(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows as they were before `permuted`."""
    rows = weight.reshape(heads, -1, 2, weight.shape[1])
    return rows.transpose(1, 2).reshape(weight.shape)


@torch.no_grad()
def importance(model: Any, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Return the sum over tokens of the squares of each layer's inputs."""
    sums: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def enter(_: Any, args: tuple[torch.Tensor]) -> None:
            squares = args[0].float().square().reshape(-1, args[0].shape[-1]).sum(0)
            sums[name] = sums.get(name, torch.zeros_like(squares)) + squares

        return enter

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in linear_layers(model).items()]
    for row in tokens:
        model(torch.from_numpy(row)[None], use_cache=False, logits_to_keep=1)
    for handle in handles:
        handle.remove()
    return {name: (values / tokens.size).numpy() for name, values in sums.items()}


def write_matrix(values: Mapping[str, np.ndarray], path: Path, chunks: int) -> None:
    """Write an importance matrix in the layout of llama-imatrix: means times the number of chunks."""
    with path.open("wb") as file:
        file.write(struct.pack("<i", len(values)))
        for name, own in values.items():
            key = f"{gguf_name(name)}.weight".encode()
            file.write(struct.pack("<i", len(key)) + key + struct.pack("<ii", chunks, len(own)))
            file.write((own * chunks).astype("<f4").tobytes())
        file.write(struct.pack("<i", chunks))


def quantize(source: Path, target: Path, matrix: Path, kind: str, *, kept: Sequence[str]) -> None:
    """Run the tool; `kept` are options that say what it is to leave alone."""
    tool = ik_llama_cpp.find_quantize_bin()
    ran = subprocess.run(
        [str(tool), "--imatrix", str(matrix), *kept, str(source), str(target), kind],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode or not target.exists():
        raise SystemExit(f"llama-quantize {kind}: exit code {ran.returncode}\n{ran.stdout[-1500:]}{ran.stderr[-1500:]}")


def read_layers(model: Any, path: Path, shapes: Mapping[str, torch.Size]) -> tuple[dict[str, torch.Tensor], float]:
    """Return what the file stores of the layers, and its bits a weight."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    weights, size = {}, 0
    for name in shapes:
        tensor = tensors[f"{gguf_name(name)}.weight"]
        values = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))
        heads = heads_of(model, name)
        weights[name] = restored(values, heads) if heads else values
        size += int(tensor.n_bytes)
    return weights, 8 * size / sum(shape.numel() for shape in shapes.values())


if __name__ == "__main__":
    main()
