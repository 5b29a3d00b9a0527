"""What each layer's rounding does to its own output, measured on the inputs of the float model.

SQNR = 10 log10(sum |y|^2 / sum |q(x) - y|^2) with y = layer(x), in dB; sums run over everything seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import NonFiniteError
from fewbit.evaluation.fidelity import decibels
from fewbit.frontends.torch.replacement import TorchReplacement


@contextmanager
def probe(replacements: Sequence[TorchReplacement]) -> Iterator[Mapping[str, float]]:
    """Watch forwards of the float forms; the mapping is filled when the block ends."""
    powers = {replacement.layer.name: [0.0, 0.0] for replacement in replacements}
    handles = [
        replacement.original.register_forward_hook(_hook(replacement, powers[replacement.layer.name]))
        for replacement in replacements
    ]
    ratios: dict[str, float] = {}
    try:
        yield ratios
    finally:
        for handle in handles:
            handle.remove()
    ratios.update({name: decibels(signal, noise) for name, (signal, noise) in powers.items() if signal})


def _hook(replacement: TorchReplacement, powers: list[float]) -> Any:
    @torch.no_grad()
    def watch(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
        signal = float(output.float().square().sum())
        if not torch.isfinite(output).all():
            raise NonFiniteError(f"{replacement.layer.name}: its output holds NaN or infinity before quantization")
        powers[0] += signal
        powers[1] += float((replacement.quantized(*arguments).float() - output.float()).square().sum())

    return watch
