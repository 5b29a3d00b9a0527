"""A language model writes its own calibration text.

Sequence i starts with token floor(i * V / n) of V; the next few tokens are the most likely ones, which makes the start
plausible, and the rest is sampled from the model's distribution. Source: LLM-QAT, arXiv 2305.17888, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fewbit.errors import CalibrationError, NonFiniteError
from fewbit.evaluation.token_ids import context_of, vocabulary_of, writes_text
from fewbit.frontends.torch.resident_memory import trim
from fewbit.interfaces import Progress
from fewbit.synthetic.cache_room import take_room

#: Tokens after the first that are the most likely ones.
_GREEDY = 4
#: Sequences that are written side by side.
_ABREAST = 32
#: Tokens after which free memory is given back: what attention takes for a moment grows with each token, and fits no
#: hole that the token before has left in the heap.
_TRIM = 32


@torch.no_grad()
def written_by(model: Any, *, sequences: int, length: int, seed: int, progress: Progress) -> list[Tensor]:
    """Return `sequences` token tensors (1, length) that `model`, a causal language model of transformers, wrote.

    Raises:
        CalibrationError: a model that writes no text, or a length beyond its context.
        NonFiniteError: scores that are NaN or infinite.

    """
    if not writes_text(model):
        raise CalibrationError(
            f"{type(model).__name__} writes no text of its own; give calibration batches, a text file, or samples: "
            "an .npz or .npy file, a folder of .npy files or images"
        )
    vocabulary, context = vocabulary_of(model) or 0, context_of(model)
    if context is not None and length > context:
        raise CalibrationError(f"calibration sequences of {length} tokens exceed the context of {context}; use fewer")
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    starts = torch.tensor([[i * vocabulary // sequences] for i in range(sequences)], device=device)
    training = model.training
    model.eval()
    try:
        written: list[Tensor] = []
        for first in range(0, sequences, _ABREAST):
            own = starts[first : first + _ABREAST]
            steps = progress.track(range(length - 1), f"write text {first // _ABREAST + 1}")
            tokens = torch.cat([own, *_continued(model, own, steps, generator, length)], 1)
            written += [tokens[row : row + 1] for row in range(len(tokens))]
        return written
    finally:
        model.train(training)


def _continued(
    model: Any, tokens: Tensor, steps: Iterator[int], generator: torch.Generator, length: int
) -> Iterator[Tensor]:
    """Yield the next token of each row, (rows, 1), for every step; there are `length` tokens in the end."""
    cache = None
    for step in steps:
        output = model(tokens, past_key_values=cache, use_cache=True)
        if cache is None:
            take_room(output.past_key_values, length)
        if step % _TRIM == 0:
            trim()
        cache = output.past_key_values
        scores = output.logits[:, -1].float()
        # Minus infinity is how a model rules a token out.
        if bool((scores.isnan() | (scores == torch.inf)).any()):
            raise NonFiniteError(
                "the model's own scores are NaN or infinite while it writes text to calibrate with; "
                "run it in a wider type (--dtype concerns files only), or calibrate on a text"
            )
        if step < _GREEDY:
            tokens = scores.argmax(-1, keepdim=True)
        else:
            tokens = torch.multinomial(scores.softmax(-1), 1, generator=generator)
        yield tokens
