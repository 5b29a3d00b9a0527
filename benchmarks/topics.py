"""Pieces of pydoc_data.topics for benchmarks: some to calibrate on, others to measure on, 512 tokens each."""

from __future__ import annotations

from typing import Any

import torch

from fewbit.evaluation.text import read_text, token_sequences
from fewbit.report.data import installed_versions, this_machine

LENGTH = 512


def pieces(source: Any, calibration: int, evaluation: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return as many sequences of tokens of the model of `source`; print what was read, and on which machine."""
    words, name = read_text(None)
    sequences = token_sequences(source.tokenizer(), words, sequences=calibration + evaluation, length=LENGTH)
    print(f"{this_machine()}; torch {installed_versions()['torch']}; {source.name}; {name}")
    print(f"{calibration} x {LENGTH} tokens for calibration, {evaluation} x {LENGTH} others\n")
    return sequences[:calibration], sequences[calibration:]
