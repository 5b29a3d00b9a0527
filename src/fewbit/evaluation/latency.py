"""How long models take, side by side; of a language model prefill, one forward of a sequence, and decoding of a token.

Models take turns, so that what slows the machine slows all of them; figures are medians.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

#: Tokens that are written for a figure of decoding.
_WRITTEN = 8
#: Seconds that `steadily` gives each run, and rounds at least and at most.
_SECONDS, _LEAST, _MOST = 1.0, 5, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Median seconds of one model."""

    #: Tokens of the sequence.
    tokens: int
    #: One forward of the sequence.
    prefill: float
    #: One token behind it, with a key-value cache; `None` where the model has none.
    decode: float | None

    @property
    def prefill_speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.prefill

    @property
    def decode_speed(self) -> float | None:
        """Tokens a second."""
        return 1.0 / self.decode if self.decode else None


def latencies(models: Sequence[Any], tokens: Any, *, rounds: int = 3) -> list[Latency]:
    """Return the latency of each model on `tokens` (1, length)."""
    import torch

    device = next((parameter.device for model in models for parameter in model.parameters()), None)
    tokens = tokens.to(device)
    with torch.no_grad():
        prefills = side_by_side([partial(model, tokens, **_last(model)) for model in models], rounds)
        decodes: list[float | None] = [None] * len(models)
        if all(_has_cache(model) for model in models):
            writing = side_by_side([partial(_write, model, tokens) for model in models], rounds)
            # What is written comes behind a prefill of its own.
            decodes = [
                max(all_of_it - first, 1e-9) / _WRITTEN for all_of_it, first in zip(writing, prefills, strict=True)
            ]
    length = tokens.shape[-1]
    return [Latency(tokens=length, prefill=own, decode=each) for own, each in zip(prefills, decodes, strict=True)]


def side_by_side(runs: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Return the median seconds of each run; each is warmed up by a run that does not count."""
    found: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(rounds):
        for run, own in zip(runs, found, strict=True):
            started = time.perf_counter()
            run()
            own.append(time.perf_counter() - started)
    return [statistics.median(own) for own in found]


def steadily(runs: Sequence[Callable[[], Any]]) -> list[float]:
    """Return the median seconds of each run, in as many rounds as the slowest one does in about a second."""
    slowest = max(side_by_side(runs, 1))
    return side_by_side(runs, min(_MOST, max(_LEAST, round(_SECONDS / max(slowest, 1e-9)))))


def _write(model: Any, tokens: Any) -> None:
    output = model(tokens, use_cache=True, **_last(model))
    for _ in range(_WRITTEN):
        following = output.logits[:, -1:].argmax(-1)
        output = model(following, past_key_values=output.past_key_values, use_cache=True)


def _last(model: Any) -> dict[str, int]:
    """Return the argument by which a model computes the scores of the last position alone."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _has_cache(model: Any) -> bool:
    config = getattr(model, "config", None)
    return "past_key_values" in inspect.signature(model.forward).parameters and hasattr(config, "use_cache")
