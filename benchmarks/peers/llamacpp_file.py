"""A whole Llama as a GGUF file by llama.cpp's quantizer (the build of ik_llama.cpp), in types of its own choice.

Run: llamacpp/bin/python llamacpp_file.py --model FOLDER --tokens FILE.npy --scheme Q4_K_M --out FILE.gguf
Source: `llama-quantize --imatrix`, as `llamacpp_quantize.py` has it; here embedding and head are quantized too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from llamacpp_quantize import importance, quantize, write_gguf, write_matrix
from peer import load, parsed, read_tokens, timed, versions


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--tokens", "--out"):
        words.add_argument(name, type=Path, required=True)
    words.add_argument("--scheme", required=True, help="a type of llama-quantize, such as Q4_K_M")
    given = parsed(words)
    model = load(given.model)
    tokens = read_tokens(given.tokens, model.config.vocab_size)

    def work() -> None:
        with tempfile.TemporaryDirectory(dir=given.out.parent) as folder:
            float_file, matrix = (Path(folder) / name for name in ("float.gguf", "matrix.dat"))
            write_gguf(model, float_file)
            write_matrix(importance(model, tokens), matrix, len(tokens))
            quantize(float_file, given.out, matrix, given.scheme, kept=())

    cost = timed(work)
    print(json.dumps({**cost, "versions": versions("ik-llama-cpp-python", "gguf", "transformers", "torch")}))


if __name__ == "__main__":
    main()
