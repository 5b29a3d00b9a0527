"""What each layer's rounding does to its own output, measured on the inputs of the float model.

SQNR = 10 log10(sum |y|^2 / sum |q(x) - y|^2) with y = layer(x), in dB; sums run over everything seen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import NonFiniteError
from fewbit.evaluation.fidelity import decibels
from fewbit.frontends.torch.attention_product import AttentionProduct
from fewbit.frontends.torch.mode_forward import watched
from fewbit.frontends.torch.product_forms import ProductForms
from fewbit.frontends.torch.replacement import TorchReplacement
from fewbit.interfaces import Watch
from fewbit.schemes.granularity import PerToken


@contextmanager
def probe(
    replacements: Sequence[TorchReplacement | ProductForms], watch: Watch | None = None
) -> Iterator[Mapping[str, float]]:
    """Watch forwards of the float forms; the mapping is filled when the block ends, `watch` given inputs meanwhile."""
    powers = {replacement.layer.name: [0.0, 0.0] for replacement in replacements}
    handles = [
        replacement.original.register_forward_hook(_hook(replacement, powers[replacement.layer.name], watch))
        for replacement in replacements
        if isinstance(replacement, TorchReplacement)
    ]
    takes: dict[nn.Module, dict[Any, Any]] = defaultdict(dict)
    for product in replacements:
        if isinstance(product, ProductForms):
            takes.update({module: {} for module in product.around if module not in takes})
            takes[product.maker][product.role] = _taken(product, powers[product.layer.name])
    ratios: dict[str, float] = {}
    try:
        with watched(takes):
            yield ratios
    finally:
        for handle in handles:
            handle.remove()
    ratios.update({name: decibels(signal, noise) for name, (signal, noise) in powers.items() if signal})


def _hook(replacement: TorchReplacement, powers: list[float], watch: Watch | None) -> Any:
    @torch.no_grad()
    def compare(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
        signal = float(output.float().square().sum())
        if not torch.isfinite(output).all():
            raise NonFiniteError(f"{replacement.layer.name}: its output holds NaN or infinity before quantization")
        powers[0] += signal
        powers[1] += float((replacement.quantized(*arguments).float() - output.float()).square().sum())
        if watch is not None and arguments and arguments[0].is_floating_point():
            _show(replacement, arguments[0], watch)

    return compare


def _show(replacement: TorchReplacement, given: Tensor, watch: Watch) -> None:
    """Give the input of a layer to `watch`, channels last."""
    form = replacement.quantized
    rows = given.movedim(-1 - form.spatial, -1)
    activation = form.input.activation if form.input is not None else None
    # Of a convolution a token is a whole sample, which is no row here.
    by_sample = activation is not None and form.spatial and isinstance(activation.scheme.granularity, PerToken)
    watch(replacement.layer.name, rows.reshape(-1, rows.shape[-1]), None if by_sample else activation)


def _taken(product: ProductForms, powers: list[float]) -> Callable[[AttentionProduct], Tensor]:
    @torch.no_grad()
    def take(own: AttentionProduct) -> Tensor:
        output = own.plain()
        if output.isnan().any():
            raise NonFiniteError(f"{product.layer.name}: its output holds NaN before quantization")
        seen = output.isfinite()  # a mask that is added to scores is infinite
        powers[0] += float(output[seen].square().sum())
        powers[1] += float((product.rounded(own) - output)[seen].square().sum())
        return output

    return take
