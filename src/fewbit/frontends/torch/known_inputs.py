"""Means of the rows that layers are given, from what BatchNorms say: followed through the operators of one run.

What a norm puts out is normal; ReLU, ReLU6 and clamps cut it, sums of two add, averages and reshapes hand it on. A row
of a convolution is a patch, at the border with zeros: its mean is that of the patches of an input that is constant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from fewbit.frontends.torch.calls import run_batch
from fewbit.frontends.torch.convolution import Convolution
from fewbit.frontends.torch.known_operators import OPERATORS, KnownTensor, reshaped
from fewbit.frontends.torch.layers import canonical_weight
from fewbit.frontends.torch.norm_folding import NORMS, is_known, norm_numbers
from fewbit.known_output import KnownOutput
from fewbit.statistics.mean import Mean


def known_inputs(
    model: nn.Module, names: Collection[str], outputs: Mapping[str, KnownOutput], batch: Any
) -> dict[str, Mean]:
    """Return the means of the rows of those layers in `names` whose inputs come from norms; of the others nothing.

    `outputs` are those of layers that norms were folded into; norms that stand in the model say themselves.
    """
    found: dict[str, Mean] = {}
    calls: Counter[str] = Counter()
    followed = _Followed()

    def given(module: nn.Module, args: Any, kwargs: Any, *, name: str) -> None:
        calls[name] += 1
        inputs = args[0] if args else next(iter(kwargs.values()))
        known = followed.look(inputs)
        mean = None if known is None else _row_means(module, inputs, known)
        if mean is not None:
            found[name] = mean

    def put_out(module: nn.Module, _: Any, output: Any, *, known: KnownOutput) -> None:
        followed.keep(output, known, _output_axis(module, output))

    if batch is None:
        return {}
    with ExitStack() as hooks:
        for module, known in _sources(model, outputs):
            hooks.callback(module.register_forward_hook(partial(put_out, known=known)).remove)
        for name in names:
            module = model.get_submodule(name)
            hooks.callback(module.register_forward_pre_hook(partial(given, name=name), with_kwargs=True).remove)
        # Tensors of inference mode do not count what is written into them.
        hooks.enter_context(torch.inference_mode(mode=False))
        hooks.enter_context(followed)
        run_batch(model, batch)
    # One that is called more than once may get other means each time.
    return {name: mean for name, mean in found.items() if calls[name] == 1}


def _sources(model: nn.Module, outputs: Mapping[str, KnownOutput]) -> Iterator[tuple[nn.Module, KnownOutput]]:
    """Yield the modules whose outputs are known."""
    for name, module in model.named_modules():
        if name in outputs and canonical_weight(module).shape[0] == outputs[name].width:
            yield module, outputs[name]
        elif isinstance(module, NORMS) and is_known(module):
            yield module, norm_numbers(module).output()


def _output_axis(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, NORMS):
        return 1
    convolution = Convolution.of(module)
    return output.ndim - 1 - (len(convolution.kernel) if convolution else 0)


@torch.no_grad()
def _row_means(module: nn.Module, inputs: Tensor, known: KnownTensor) -> Mean | None:
    """Return the means of the rows of a layer, `None` where the channels are not along the axis that it reads."""
    convolution = Convolution.of(module)
    axis = inputs.ndim - 1 - (len(convolution.kernel) if convolution else 0)
    if known.axis != axis:
        return None
    shape = [1] * inputs.ndim
    shape[axis] = -1
    means = torch.from_numpy(known.output.mean).to(inputs.device).reshape(shape)
    if convolution is None:
        pieces: Any = (means.reshape(1, -1),)
    else:
        pieces = convolution.rows(means.expand((1, *inputs.shape[1:]) if axis else inputs.shape))
    mean: Mean | None = None
    for rows in pieces:
        mean = mean or Mean.init(rows.shape[-1], rows)
        mean.update(rows)
    return mean


class _Followed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tensors of a run of which something is known."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: Any = WeakTensorKeyDictionary()

    def keep(self, tensor: Any, known: KnownOutput, axis: int, writes: int = 0) -> None:
        """Remember what is known of a tensor from now on, when so many `writes` into it will have been counted."""
        if isinstance(tensor, Tensor) and not tensor.is_inference() and tensor.shape[axis] == known.width:
            self._known[tensor] = KnownTensor(known, axis, tensor._version + writes)

    def look(self, tensor: Any) -> KnownTensor | None:
        """Return what is known of a tensor; nothing where it, or what it is a view of, was written into since."""
        known: KnownTensor | None = self._known.get(tensor) if isinstance(tensor, Tensor) else None
        return known if known is not None and known.version == tensor._version else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        name = func.overloadpacket.__name__.removesuffix("_")
        # torch counts a write once it is done, behind this.
        writes = int(func.overloadpacket.__name__ != name)
        # Before it runs, for it may write into what it is given.
        known = OPERATORS[name](self.look, *args, **named) if name in OPERATORS else None
        output = func(*args, **named)
        known = known or reshaped(name, self.look, args, output)
        if known is not None:
            self.keep(output, known.output, known.axis, writes)
        return output
