"""Where a BatchNorm can be folded: found by the data flow of one run, and kept if the model's output stays the same.

A candidate is a norm that is given the very tensor that a linear layer or convolution has put out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.frontends.torch.calls import copied, run_batch, same
from fewbit.frontends.torch.convolution import Convolution
from fewbit.problems import several
from fewbit.transforms import Applied
from fewbit.transforms.batchnorm import BatchNorm, folded_sentence

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
#: Roundings by which outputs may differ: those of the folded weights go through the whole model.
_ROUNDINGS = 2.0**14
_Folded = Callable[[Tensor, Tensor | None, BatchNorm], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class NormPair:
    """A layer and the norm behind it, by the name of the norm."""

    layer: nn.Module
    norm: nn.Module
    name: str


class NormFold:
    """A pair in its two forms."""

    def __init__(self, model: nn.Module, pair: NormPair, folded: _Folded) -> None:
        self.name = pair.name
        self.pair = pair
        self._layer: Any = pair.layer
        self._before = pair.layer.weight, pair.layer.bias
        self._after = _folded_parameters(pair, folded)
        self._norm = pair.norm
        self._places = [
            (parent, attribute)
            for parent in model.modules()
            for attribute, child in parent._modules.items()
            if child is pair.norm
        ]

    def apply(self) -> None:
        """Put the folded numbers in, and nothing in the place of the norm."""
        self._set(self._after, nn.Identity())

    def restore(self) -> None:
        """Undo `apply`."""
        self._set(self._before, self._norm)

    def _set(self, parameters: tuple[Any, Any], norm: nn.Module) -> None:
        self._layer.weight, self._layer.bias = parameters
        for parent, attribute in self._places:
            setattr(parent, attribute, norm)


def fold_norms(model: nn.Module, batch: Any, folded: _Folded) -> Applied:
    """Fold every norm that can be folded, and say which were not and why."""
    norms: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if isinstance(module, NORMS)}
    if not norms:
        return Applied(sentences=())
    if batch is None:
        return Applied(sentences=(f"{several(norms)}: BatchNorm stays, for no data shows what it follows; give some",))
    kept = found_folds(model, batch, folded)
    for fold in kept:
        fold.apply()
    left = [name for name in norms if name not in {fold.name for fold in kept}]
    sentences = [folded_sentence(len(kept))] if kept else []
    if left:
        sentences.append(f"{several(left)}: BatchNorm stays, no layer before it is read by it alone")

    def restore() -> None:
        for fold in kept:
            fold.restore()

    names = {module: name for name, module in model.named_modules()}
    outputs = {names[fold.pair.layer]: norm_numbers(fold.pair.norm).output() for fold in kept}
    return Applied(sentences=tuple(sentences), restore=restore, outputs=outputs)


def found_folds(model: nn.Module, batch: Any, folded: _Folded) -> list[NormFold]:
    """Return the folds that leave the model's output on `batch` as it is; none is applied yet."""
    norms: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if isinstance(module, NORMS)}
    folds = [NormFold(model, pair, folded) for pair in _candidates(model, batch, norms)]
    run = partial(run_batch, model, batch, every_score=True)
    expected = copied(run())
    return folds if _equal(folds, run, expected) else [fold for fold in folds if _equal([fold], run, expected)]


def _equal(folds: list[NormFold], run: Callable[[], Any], expected: Any) -> bool:
    """Whether the output stays as it was with these folds, which are taken back."""
    for fold in folds:
        fold.apply()
    try:
        return same(expected, run(), _ROUNDINGS)
    except Exception:  # a model that looks into its norm cannot do without it
        return False
    finally:
        for fold in folds:
            fold.restore()


def _candidates(model: nn.Module, batch: Any, norms: dict[str, nn.Module]) -> list[NormPair]:
    """Return the pairs by the data flow of one run."""
    made: dict[int, tuple[nn.Module, Tensor, int | None]] = {}
    calls: Counter[nn.Module] = Counter()
    pairs: list[NormPair] = []

    def put_out(module: nn.Module, _: Any, output: Any) -> None:
        calls[module] += 1
        made[id(output)] = module, output, _version(output)

    def given(module: Any, arguments: tuple[Any, ...], named: dict[str, Any], *, name: str) -> None:
        calls[module] += 1
        own = arguments[0] if arguments else next(iter(named.values()))
        layer, output, version = made.get(id(own), (None, None, None))
        # Of what was written into since, the layer is not the author.
        if layer is None or output is None or output is not own or _version(own) != version:
            return
        if _outputs(layer) == module.num_features:
            pairs.append(NormPair(layer, module, name))

    owners = Counter(id(module.weight) for module in model.modules() if _is_linear(module))
    layers = [module for module in model.modules() if _is_linear(module) and owners[id(module.weight)] == 1]
    handles = [layer.register_forward_hook(put_out) for layer in layers]
    handles += [
        norm.register_forward_pre_hook(partial(given, name=name), with_kwargs=True)
        for name, norm in norms.items()
        if is_known(norm)
    ]
    try:
        run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    readers = Counter(pair.layer for pair in pairs)
    return [pair for pair in pairs if calls[pair.layer] == calls[pair.norm] == readers[pair.layer] == 1]


def _is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer whose weight is a parameter of its own, not one made from others at each call."""
    linear = type(module) is nn.Linear or Convolution.of(module) is not None
    return linear and "weight" in module._parameters


def _outputs(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _version(tensor: Tensor) -> int | None:
    """Return what counts the writes into a tensor; one of inference mode has no count."""
    return None if tensor.is_inference() else tensor._version


def is_known(norm: nn.Module) -> bool:
    """Whether inference uses numbers that are known."""
    return getattr(norm, "running_mean", None) is not None and getattr(norm, "running_var", None) is not None


def norm_numbers(norm: Any) -> BatchNorm:
    """Return the numbers of a norm in inference."""
    return BatchNorm(
        mean=norm.running_mean, variance=norm.running_var, gain=norm.weight, shift=norm.bias, epsilon=norm.eps
    )


@torch.no_grad()
def _folded_parameters(pair: NormPair, folded: _Folded) -> tuple[nn.Parameter, nn.Parameter]:
    layer: Any = pair.layer
    numbers = norm_numbers(pair.norm)
    convolution = Convolution.of(layer)
    matrix = convolution.matrix(layer.weight) if convolution else layer.weight
    weight, bias = folded(matrix, layer.bias, numbers)
    weight = weight.contiguous()
    shaped = convolution.weight(weight) if convolution else weight
    trained = layer.weight.requires_grad
    return nn.Parameter(shaped, requires_grad=trained), nn.Parameter(bias, requires_grad=trained)
