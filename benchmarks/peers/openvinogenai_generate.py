"""OpenVINO GenAI loads a GGUF file, generates greedily behind prompts of token ids, and says its logits of whole texts.

Run: openvinogenai/bin/python openvinogenai_generate.py --model M.gguf --tokens FILE.npy --new 16 --logits OUT.npy
     further: --texts FILE.json, a list of texts to cut into tokens
Prints a JSON line: the new tokens of each prompt, the tokens of each text, and versions. Computes in float32.
Source: PyPI's `openvino-genai`, which reads Llama and Qwen in F16, Q4_0, Q4_1, Q8_0, Q4_K and Q6_K.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

#: Without them inputs of layers are rounded to 8 bits on the way, and so are keys and values.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", type=Path, required=True, help="a .gguf file")
    words.add_argument("--tokens", type=Path, required=True, help="int64 (prompts, length), a .npy file")
    words.add_argument("--new", type=int, default=16, help="tokens to generate")
    words.add_argument(
        "--logits", type=Path, required=True, help="where to write float32 (prompts, length, vocabulary)"
    )
    words.add_argument("--texts", type=Path, help="a JSON list of texts")
    given = words.parse_args()
    prompts = np.load(given.tokens)
    texts = json.loads(given.texts.read_text()) if given.texts else []
    with tempfile.TemporaryDirectory(dir=given.logits.parent) as folder:
        # What it makes of a file is saved beside the file.
        linked = Path(folder) / "m.gguf"
        linked.symlink_to(given.model.resolve())
        pipeline = openvino_genai.LLMPipeline(linked, "CPU", enable_save_ov_model=True, **EXACT)
        tokens = [generated(pipeline, row, given.new) for row in prompts]
        cut = [pipeline.get_tokenizer().encode(text).input_ids.data[0].tolist() for text in texts]
        np.save(given.logits, logits(Path(folder) / "openvino_model.xml", prompts))
    packages = ("openvino-genai", "openvino")
    print(json.dumps({"tokens": tokens, "texts": cut, "versions": {name: version(name) for name in packages}}))


def generated(pipeline: Any, prompt: np.ndarray, new: int) -> list[int]:
    """Return the `new` tokens that follow a prompt."""
    settings = openvino_genai.GenerationConfig()
    settings.max_new_tokens, settings.do_sample, settings.ignore_eos = new, False, True
    row = prompt[None].astype(np.int64)
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(row), openvino.Tensor(np.ones_like(row)))
    return [int(token) for token in pipeline.generate(inputs, settings).tokens[0]]


def logits(model: Path, prompts: np.ndarray) -> np.ndarray:
    """Return the logits of the model in OpenVINO's own form for each prompt as a whole."""
    request = openvino.Core().compile_model(model, "CPU", EXACT).create_infer_request()
    found = []
    for prompt in prompts:
        request.reset_state()
        row = prompt[None].astype(np.int64)
        known = {
            "input_ids": row,
            "attention_mask": np.ones_like(row),
            "position_ids": np.arange(row.shape[1])[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        found.append(np.array(request.infer(known)["logits"])[0])
    return np.stack(found).astype(np.float32)


if __name__ == "__main__":
    main()
