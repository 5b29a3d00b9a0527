"""Biases moved along a link: b1 - c and b2 + W2 c, where a run proves that this is a shift and nothing else.

With b1 raised until all numbers are above c, an activation such as ReLU passes them: the output must stay, and with
the c of other channels it must not. A convolution that pads with zeros fails: its border got no c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbit.frontends.torch.calls import copied, same, tensors_in
from fewbit.frontends.torch.channel_scaling import Changes, by_input, exchange, parameter_like
from fewbit.frontends.torch.links import Fold
from fewbit.frontends.torch.output_change import CLEARLY, output_change
from fewbit.transforms.high_bias_absorption import NO_BIAS, NO_SHIFT, ROUNDINGS, trial_of
from fewbit.transforms.link import Factors


def absorb(fold: Fold, runs: Sequence[Callable[[], Any]], shift: Factors) -> tuple[float, Changes] | str:
    """Take `shift` (outputs,) off the producer's channels; return how far the output went, and what was there before.

    A sentence says why nothing was changed.
    """
    link, model = fold.link, fold.model
    if any(model.get_submodule(name)._parameters.get("bias") is None for name in (link.producer, *link.consumers)):
        return NO_BIAS
    if not _is_exact(fold, runs[0]):
        return NO_SHIFT
    before = [copied(run()) for run in runs]
    undo = _moved(fold, shift)
    return max(output_change(own, run()) for own, run in zip(before, runs, strict=True)), undo


def _is_exact(fold: Fold, run: Callable[[], Any]) -> bool:
    trial = trial_of(fold.link, _largest(fold.model.get_submodule(fold.link.producer), run))
    if trial is None:
        return False
    above, shift = trial
    raised = exchange(_biases(fold, -above, None))
    try:
        expected = copied(run())
        right, wrong = (_trial(fold, run, shift, columns) for columns in (shift, 2.0 * np.roll(shift, 1)))
        close = same(expected, right, ROUNDINGS)
        return close and CLEARLY * output_change(expected, right) < output_change(expected, wrong)
    finally:
        exchange(raised)


def _trial(fold: Fold, run: Callable[[], Any], shift: Factors, columns: Factors) -> Any:
    """Return the output with biases moved, which is taken back."""
    undo = exchange(_biases(fold, shift, columns))
    try:
        return copied(run())
    finally:
        exchange(undo)


def _moved(fold: Fold, shift: Factors) -> Changes:
    return exchange(_biases(fold, shift, shift))


@torch.no_grad()
def _biases(fold: Fold, shift: Factors, columns: Factors | None) -> Changes:
    """Return the biases with `shift` taken off the producer, and with what `columns` make added to the consumers."""
    producer: Any = fold.model.get_submodule(fold.link.producer)
    changes: Changes = [
        (producer, {"bias": parameter_like(producer.bias, producer.bias.double() - _like(producer, shift))})
    ]
    for name in fold.link.consumers if columns is not None else ():
        consumer: Any = fold.model.get_submodule(name)
        apart, _ = by_input(consumer)
        spread = _like(consumer, fold.link.spread(columns, otherwise=0.0)).reshape(len(apart), -1, 1)  # type: ignore[arg-type]
        made = torch.matmul(apart.double().sum(3), spread).flatten()
        changes.append((consumer, {"bias": parameter_like(consumer.bias, consumer.bias.double() + made)}))
    return changes


def _largest(module: nn.Module, run: Callable[[], Any]) -> float:
    """Return the largest magnitude that a module puts out."""
    found: list[float] = []

    def take(_: nn.Module, __: Any, output: Any) -> None:
        found.extend(float(tensor.abs().max()) for tensor in tensors_in(output) if tensor.numel())

    handle = module.register_forward_hook(take)
    try:
        run()
    finally:
        handle.remove()
    return max(found, default=0.0)


def _like(module: Any, values: Factors) -> Tensor:
    return torch.from_numpy(values).to(module.weight.device)
