"""Quantize generated Llamas of growing size from disk to disk: predicted beside measured, flat in the number of blocks.

    python benchmarks/scale.py --blocks 40 80 --memory 3GB --folder SCRATCH       # 100 M weights a block, 8 and 16 GB
    python benchmarks/scale.py --blocks 4 8 --hidden 1536 --intermediate 4096     # 25 M a block, minutes

Weights are seeded random numbers, written shard by shard. A run that was interrupted goes on when the same command is
given again; what is done stands in FOLDER/results.json, and --clean removes models and outputs behind their runs. The
peak is that of the child that quantizes, VmHWM of its /proc/self/status (a row of its report).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

VOCABULARY, HEAD = 32_000, 128


def main() -> None:
    options = arguments()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.generate:
        generate(options.generate, options)
        return
    rows = [measured(blocks, options) for blocks in options.blocks]
    print(table(rows))
    for row in rows:
        if options.memory and row["peak"] > row["limit"]:
            sys.exit(f"{row['blocks']} blocks took {row['peak']:,} bytes, more than --memory {options.memory}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--intermediate", type=int, default=8192)
    parser.add_argument("--memory", default="3GB")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=Path("scale"))
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--generate", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(blocks: int, options: argparse.Namespace) -> dict:
    """Return the row of a model of `blocks` blocks, measured now or before."""
    results = options.folder / "results.json"
    known = json.loads(results.read_text()) if results.exists() else {}
    calibration = f"{options.sequences} x {options.length}"
    key = f"{blocks} x {options.hidden} x {options.intermediate}, {calibration}, {options.memory}"
    if key in known:
        return known[key]
    model, output = (options.folder / f"{kind}-{options.hidden}-{blocks}" for kind in ("model", "out"))
    if not (model / "complete").exists():
        # In a process of its own: a child begins with the peak of the one that starts it.
        subprocess.run([sys.executable, __file__, *shape(options), "--generate", str(blocks)], check=True)
    command = [
        sys.executable, "-m", "fewbit", "quantize", str(model), "-o", str(output), "--weight", "int4 g128",
        "--algorithm", "gptq", "--calibration", str(model / "tokens.npy"), "--batch-size", "1",
        "--memory", options.memory, "--resume", "--json",
    ]  # fmt: skip
    resumed = output.with_name(f"{output.name}.partial").exists()
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    report = json.loads(done.stdout)
    from fewbit.byte_size import byte_size

    row = {
        "blocks": blocks,
        "stored": sum(file.stat().st_size for file in model.glob("*.safetensors")),
        "predicted": report["predicted"],
        "peak": max(report["peak_memory"].values()),
        "limit": byte_size(options.memory),
        "seconds": round(time.perf_counter() - started, 1),
        "solving": round(sum(layer["seconds"] or 0.0 for layer in report["layers"]), 1),
        "resumed": resumed,
    }
    results.write_text(json.dumps({**known, key: row}, indent=2))
    if options.clean:
        shutil.rmtree(model)
        shutil.rmtree(output)
    return row


def shape(options: argparse.Namespace) -> list[str]:
    given = {"hidden": options.hidden, "intermediate": options.intermediate, "folder": options.folder,
             "sequences": options.sequences, "length": options.length}  # fmt: skip
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def table(rows: list[dict]) -> str:
    lines = ["| blocks | stored | peak predicted | measured | seconds predicted | measured | a block | solving |"]
    lines.append("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        known, mega = row["predicted"], 1e6
        went = f"{row['seconds']:.0f}{' (resumed)' if row['resumed'] else ''}"
        lines.append(
            f"| {row['blocks']} | {row['stored'] / mega:,.0f} MB | {known['memory'] / mega:,.0f} MB | "
            f"{row['peak'] / mega:,.0f} MB | {known['seconds']:.0f} | {went} | {row['seconds'] / row['blocks']:.1f} | "
            f"{row['solving']:.0f} |"
        )
    return "\n".join(lines)


def generate(blocks: int, options: argparse.Namespace) -> None:
    """Write a Llama folder, a shard a block; shards that are there are kept."""
    import numpy as np

    folder = options.folder / f"model-{options.hidden}-{blocks}"
    folder.mkdir(parents=True, exist_ok=True)
    hidden, wide, keys = options.hidden, options.intermediate, max(1, options.hidden // HEAD // 3) * HEAD
    block = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    shards = [{"model.embed_tokens.weight": (VOCABULARY, hidden)}]
    shards += [{f"model.layers.{place}.{name}.weight": own for name, own in block.items()} for place in range(blocks)]
    shards.append({"model.norm.weight": (hidden,), "lm_head.weight": (VOCABULARY, hidden)})
    placed = {}
    for number, tensors in enumerate(shards):
        name = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        placed |= dict.fromkeys(tensors, name)
        if not (folder / name).exists():
            write_shard(folder / name, tensors, number)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": wide,
        "num_hidden_layers": blocks, "num_attention_heads": hidden // HEAD, "num_key_value_heads": keys // HEAD,
        "head_dim": HEAD, "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
        "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (options.sequences, options.length))
    np.save(folder / "tokens.npy", tokens)
    (folder / "complete").touch()


def write_shard(path: Path, tensors: dict[str, tuple[int, ...]], number: int) -> None:
    """Write seeded random weights, a tensor at a time; the file gets its name when it is whole."""
    import ml_dtypes
    import numpy as np

    from fewbit.checkpoints.folder import write_at
    from fewbit.checkpoints.safetensors_header import create_empty
    from fewbit.interfaces import StoredTensor

    partial = path.with_suffix(".partial")
    starts = create_empty(partial, [StoredTensor(name, "bfloat16", own) for name, own in tensors.items()])
    for place, (name, own) in enumerate(tensors.items()):
        draw = np.random.default_rng([number, place])
        if len(own) == 1:
            values = np.ones(own, np.float32)
        else:
            values = draw.standard_normal(own, np.float32) * np.float32(0.7 / own[1] ** 0.5)
        write_at(partial, starts[name], values.astype(ml_dtypes.bfloat16).reshape(-1).view(np.uint8).data)
    partial.rename(path)


if __name__ == "__main__":
    main()
