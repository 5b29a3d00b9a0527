"""What is known of the values that layers are given and put out, as one run shows it by a flow of ranges.

A layer's output is known by the norm that was folded into it, or by the one that reads it: m +- n s of what that norm
remembers of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewbit.frontends.torch.convolution import Convolution
from fewbit.interfaces import Layer
from fewbit.known_output import KnownOutput
from fewbit.statistics.extremes import Extremes
from fewbit.synthetic.channel_range import ChannelRange
from fewbit.synthetic.norm_inputs import norms_of, remembered
from fewbit.synthetic.range_flow import RangeFlow


@dataclass(slots=True)
class _PutOut:
    """An output of a layer: kept, so that no other tensor is taken for it."""

    layer: str
    module: nn.Module
    tensor: Tensor
    version: int
    found: ChannelRange


class RangeWatch:
    """Listens to the layers whose ranges are wanted, and to norms."""

    def __init__(self, flow: RangeFlow) -> None:
        self._flow = flow
        self._given: dict[str, list[Extremes | None]] = {}
        self._put_out: list[_PutOut] = []

    @contextmanager
    def on(
        self, model: nn.Module, inputs: Sequence[Layer], outputs: Sequence[Layer], known: Mapping[str, KnownOutput]
    ) -> Iterator[None]:
        """Listen to those whose `inputs` and `outputs` are asked for; `known`: outputs of folded norms."""
        with ExitStack() as hooks:
            for layer in inputs:
                take = partial(self._take_input, name=layer.name)
                hooks.callback(model.get_submodule(layer.name).register_forward_pre_hook(take, with_kwargs=True).remove)
            for name, own in known.items():  # before what asks for the ranges of outputs
                note = partial(self._note, known=own)
                hooks.callback(model.get_submodule(name).register_forward_hook(note).remove)
            for layer in outputs:
                keep = partial(self._keep_output, name=layer.name)
                hooks.callback(model.get_submodule(layer.name).register_forward_hook(keep).remove)
            for norm in norms_of(model).values() if outputs else ():
                hooks.callback(norm.register_forward_pre_hook(self._read, with_kwargs=True).remove)
            yield

    @property
    def inputs(self) -> dict[str, Extremes]:
        """The extremes of what layers were given, of those that are known in every call."""
        return _merged(self._given)

    @property
    def outputs(self) -> dict[str, Extremes]:
        """The extremes of what layers put out, of those that are known in every call."""
        found: dict[str, list[Extremes | None]] = {}
        for own in self._put_out:
            width = own.tensor.shape[1 if _channels_second(own.module, own.tensor) else -1]
            extremes = _extremes(own.found, own.module, own.tensor, width, self._flow.reach)
            found.setdefault(own.layer, []).append(extremes)
        return _merged(found)

    def _take_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, name: str) -> None:
        given = _first(args, kwargs)
        convolution = Convolution.of(module)
        width = convolution.in_channels if convolution else given.shape[-1]
        found = _extremes(self._flow.of(given), module, given, width, self._flow.reach)
        self._given.setdefault(name, []).append(found)

    def _note(self, module: nn.Module, _: Any, output: Any, *, known: KnownOutput) -> None:
        if _channels_second(module, output) and output.shape[1] == known.width and known.gain is not None:
            ends = (torch.from_numpy(own).float() for own in (known.mean, known.gain))
            self._flow.note(output, ChannelRange.normal(*ends))

    def _keep_output(self, module: nn.Module, _: Any, output: Tensor, *, name: str) -> None:
        self._put_out.append(_PutOut(name, module, output, output._version, self._flow.of(output)))

    def _read(self, norm: _BatchNorm, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = _first(args, kwargs)
        for own in self._put_out:
            # Another version is what something has written into it since.
            if own.tensor is given and given._version == own.version and not own.found.known:
                own.found = ChannelRange.normal(*(part.detach().cpu() for part in remembered(norm)))


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _merged(found: Mapping[str, Sequence[Extremes | None]]) -> dict[str, Extremes]:
    whole: dict[str, Extremes] = {}
    for name, several in found.items():
        known = [own for own in several if own is not None]
        if len(known) == len(several):
            whole[name] = known[0]
            for own in known[1:]:
                whole[name].merge(own)
    return whole


def _extremes(own: ChannelRange, module: nn.Module, tensor: Tensor, width: int, reach: float) -> Extremes | None:
    """Return the bounds (width,) of what a layer is given or puts out; `None`: they are not known."""
    if not own.known:
        return None
    low, high = (own if _channels_second(module, tensor) else own.whole(reach)).extent(reach)
    return Extremes(low.expand(width).clone(), high.expand(width).clone(), count=1)


def _channels_second(module: nn.Module, tensor: Tensor) -> bool:
    """Whether what a layer is given, or puts out, has its channels where ranges are followed, on the second axis."""
    return Convolution.of(module) is not None or tensor.ndim == 2
