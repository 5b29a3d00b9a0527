"""Runs a GGUF file in ik_llama.cpp: a program of its own, since the engine ends the process where it does not like one.

    python tests/peers/ik_llama.py m.gguf tokens.npy logits.npy
    python tests/peers/ik_llama.py m.gguf texts.json tokens.json

Tokens go in by 31 at most: on AVX2 version 0.1.5 has wrong logits for 32 and more at a time.
"""

import json
import sys
from pathlib import Path

import numpy as np
from ik_llama_cpp import _ctypes_api as api
from ik_llama_cpp._internals import IkContext, IkModel, make_batch_range

AT_ONCE = 31


def logits(model, tokens):
    """Return the logits (tokens, vocabulary) of a sequence."""
    context = IkContext(model, n_ctx=max(64, len(tokens)), n_threads=1, flash_attn=False)
    found = []
    for start in range(0, len(tokens), AT_ONCE):
        piece = [int(token) for token in tokens[start : start + AT_ONCE]]
        batch = make_batch_range(piece, pos_start=start)
        for place in range(len(piece)):
            batch.logits[place] = 1
        assert context.decode(batch) == 0
        found += [
            np.ctypeslib.as_array(context.get_logits(place), (model.n_vocab,)).copy() for place in range(len(piece))
        ]
        api.llama_batch_free(batch)
    return np.stack(found)


def main(path, given, result):
    model = IkModel(path)
    if given.endswith(".json"):
        texts = json.loads(Path(given).read_text())
        tokens = [model.tokenize(text, add_bos=False, special=True) for text in texts]
        Path(result).write_text(json.dumps(tokens))
    else:
        np.save(result, np.stack([logits(model, row) for row in np.load(given)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
