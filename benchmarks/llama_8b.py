"""How long GPTQ takes on a model with the shapes of Llama 3 8B and seeded random weights: the walk, and the solving.

Run: python benchmarks/llama_8b.py [--device cuda] [--blocks 32] [--samples 128] [--length 2048] [--weight "int4 g128"]
The last line printed is JSON: seconds of the whole run and of solving alone, peak memory of the device or the process.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fewbit as fb

sys.path.append(str(Path(__file__).parent / "peers"))
from peer import peak_memory


def model_of(blocks: int, hidden: int, device: str) -> LlamaForCausalLM:
    """Return a float Llama of 8 billion weights, or of fewer blocks, or of another width in the same proportions."""
    config = LlamaConfig(
        vocab_size=128_256 if hidden == 4096 else 512, hidden_size=hidden, intermediate_size=hidden * 7 // 2,
        num_hidden_layers=blocks, num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
        rope_theta=500_000.0, dtype=torch.bfloat16,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096, help="width of the residual stream, a multiple of 32")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--weight", default="int4 g128")
    parser.add_argument("--guided", action="store_true", help="as the presets have it, with gradients")
    given = parser.parse_args()
    model = model_of(given.blocks, given.hidden, given.device)
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.vocab_size
    data = [torch.randint(vocabulary, (1, given.length), generator=generator) for _ in range(given.samples)]
    algorithm = fb.Gptq(guided=given.guided)
    recipe = fb.Recipe([fb.keep(kind="head"), fb.Rule(kind="linear", weight=given.weight, algorithm=algorithm)])
    started = time.perf_counter()
    report = fb.quantize(model, recipe, calibration=data, options=fb.Options(device=given.device)).report
    solved = [layer for layer in report.layers if layer.solved_sqnr is not None]
    print(
        json.dumps({
            "device": torch.cuda.get_device_name(given.device) if given.device.startswith("cuda") else "cpu",
            "layers": len(solved), "seconds": round(time.perf_counter() - started, 1),
            "solving_seconds": round(sum(layer.seconds or 0.0 for layer in solved), 1),
            "peak_gb": round(peak_memory(given.device) / 1e9, 2),
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
