"""Ranges of the inputs of layers from BatchNorms alone: beta +- n |gamma|, through what lies between norm and layer.

A norm puts out about N(beta, gamma^2) in each channel; n = 6 holds all of it. Source: DFQ, arXiv 1906.04721, 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import CalibrationError
from fewbit.frontends.torch.calls import evaluating
from fewbit.frontends.torch.convolution import Convolution
from fewbit.interfaces import Layer
from fewbit.known_output import KnownOutput
from fewbit.problems import several
from fewbit.statistics.extremes import Extremes
from fewbit.synthetic.channel_range import ChannelRange
from fewbit.synthetic.image_form import ImageForm
from fewbit.synthetic.range_flow import RangeFlow
from fewbit.synthetic.request import Request

#: How many deviations a range reaches to each side; of the input of the model, where nothing is known of its values.
REACH, INPUT_REACH = 6.0, 3.0


def batchnorm_ranges(
    model: nn.Module, layers: Sequence[Layer], request: Request, outputs: Mapping[str, KnownOutput] | None = None
) -> dict[str, Extremes]:
    """Return the extremes of the input of each of `layers`, by name.

    `outputs` are those of layers that norms were folded into, as they are now; norms that stand say themselves.

    Raises:
        CalibrationError: layers behind something else than a BatchNorm, named all at once.

    """
    found: dict[str, Extremes] = {}
    unknown: dict[str, None] = {}
    flow = RangeFlow(REACH)

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, layer: Layer) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        own = _extremes(flow.of(given), module, given)
        if own is None:
            unknown[layer.name] = None
        elif layer.name in found:
            found[layer.name].merge(own)
        else:
            found[layer.name] = own

    def put_out(module: nn.Module, _: Any, output: Any, *, known: KnownOutput) -> None:
        if _channels_second(module, output) and output.shape[1] == known.width and known.gain is not None:
            flow.note(output, ChannelRange.normal(*(torch.from_numpy(own).float() for own in (known.mean, known.gain))))

    with ExitStack() as hooks:
        for layer in layers:
            hook = model.get_submodule(layer.name).register_forward_pre_hook(
                partial(enter, layer=layer), with_kwargs=True
            )
            hooks.callback(hook.remove)
        for name, known in (outputs or {}).items():
            hooks.callback(model.get_submodule(name).register_forward_hook(partial(put_out, known=known)).remove)
        with evaluating(model), torch.no_grad(), flow:
            images = shown(request)
            flow.note(images, _input_range(request.form))
            request.call(model, images)
    missing = [layer.name for layer in layers if layer.name in unknown or layer.name not in found]
    if missing:
        raise CalibrationError(
            f"{several(missing)}: no BatchNorm tells the range of its input; keep it, round its input dynamically "
            "('int8 token asym'), or calibrate on data or with calibration='synthetic'"
        )
    return {name: _placed(own, request) for name, own in found.items()}


def shown(request: Request) -> Tensor:
    """Return a sample of noise, (1, *shape): what a model computes shows on any input."""
    return request.form.noise(request.generator(), 1)


def _input_range(form: ImageForm) -> ChannelRange:
    if form.low is not None and form.high is not None:
        return ChannelRange.between(form.low.flatten(), form.high.flatten(), REACH)
    spread = INPUT_REACH * form.deviation
    return ChannelRange.between((form.mean - spread).flatten(), (form.mean + spread).flatten(), REACH)


def _extremes(own: ChannelRange, module: nn.Module, given: Tensor) -> Extremes | None:
    """Return the bounds (width,) of what a layer is given; `None`: they are not known."""
    if not own.known:
        return None
    convolution = Convolution.of(module)
    low, high = (own if _channels_second(module, given) else own.whole(REACH)).extent(REACH)
    width = convolution.in_channels if convolution else given.shape[-1]
    return Extremes(low.expand(width).clone(), high.expand(width).clone(), count=1)


def _channels_second(module: nn.Module, tensor: Tensor) -> bool:
    """Whether what a layer is given, or puts out, has its channels where ranges are followed, on the second axis."""
    return Convolution.of(module) is not None or tensor.ndim == 2


def _placed(own: Extremes, request: Request) -> Extremes:
    return Extremes(own.low.to(request.device), own.high.to(request.device), own.count)
