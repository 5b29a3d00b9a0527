"""How far a GGUF file is from the float model when ik_llama.cpp runs it: divergence, agreement, perplexity.

Run: llamacpp/bin/python llamacpp_divergence.py --model FOLDER --file FILE.gguf --tokens FILE.npy
The engine rounds inputs too, so that a file of float16 is not at zero. Tokens go in by 31: 0.1.5 has wrong logits for
32 and more at a time on AVX2. Divergence is KL(float, file) in nats, the mean over what tokens predict.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from ik_llama_cpp import _ctypes_api as api
from ik_llama_cpp._internals import IkContext, IkModel, make_batch_range
from peer import load, read_tokens, versions

AT_ONCE = 31


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--file", "--tokens"):
        words.add_argument(name, type=Path, required=True)
    given = words.parse_args()
    reference = load(given.model).float()
    tokens = read_tokens(given.tokens, reference.config.vocab_size)
    engine = IkModel(str(given.file))
    found = np.mean([compared(reference, engine, row) for row in tokens], axis=0)
    own = {"kl": found[0], "top1": found[1], "perplexity": float(np.exp(found[2]))}
    print(json.dumps({**own, "versions": versions("ik-llama-cpp-python", "transformers", "torch")}))


@torch.no_grad()
def compared(reference: torch.nn.Module, engine: IkModel, tokens: np.ndarray) -> list[float]:
    """Return the mean divergence, agreement and negative log likelihood of one sequence."""
    ids = torch.from_numpy(tokens)
    wanted = reference(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
    written = logits(engine, tokens)[:-1].log_softmax(-1)
    divergence = (wanted.exp() * (wanted - written)).sum(-1).mean()
    agreement = (wanted.argmax(-1) == written.argmax(-1)).float().mean()
    likelihood = -written.gather(1, ids[1:, None]).mean()
    return [float(divergence), float(agreement), float(likelihood)]


def logits(engine: IkModel, tokens: np.ndarray) -> torch.Tensor:
    """Return the engine's logits, (tokens, vocabulary)."""
    context = IkContext(engine, n_ctx=max(64, len(tokens)), n_threads=torch.get_num_threads(), flash_attn=False)
    rows = []
    for start in range(0, len(tokens), AT_ONCE):
        piece = [int(token) for token in tokens[start : start + AT_ONCE]]
        batch = make_batch_range(piece, pos_start=start)
        for place in range(len(piece)):
            batch.logits[place] = 1
        if context.decode(batch):
            raise SystemExit(f"ik_llama.cpp cannot run tokens {start} to {start + len(piece)}")
        for place in range(len(piece)):
            rows.append(np.ctypeslib.as_array(context.get_logits(place), (engine.n_vocab,)).copy())
        api.llama_batch_free(batch)
    return torch.from_numpy(np.stack(rows))


if __name__ == "__main__":
    main()
