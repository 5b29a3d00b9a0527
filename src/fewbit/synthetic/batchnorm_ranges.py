"""Ranges of the inputs of layers from BatchNorms alone: beta +- n |gamma|, through what lies between norm and layer.

A norm puts out about N(beta, gamma^2) in each channel; n = 6 holds all of it. Source: DFQ, arXiv 1906.04721, 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import CalibrationError
from fewbit.frontends.torch.calls import evaluating
from fewbit.frontends.torch.convolution import Convolution
from fewbit.interfaces import Layer
from fewbit.problems import several
from fewbit.statistics.extremes import Extremes
from fewbit.synthetic.channel_range import ChannelRange
from fewbit.synthetic.image_form import ImageForm
from fewbit.synthetic.range_flow import RangeFlow
from fewbit.synthetic.request import Request

#: How many deviations a range reaches to each side; of the input of the model, where nothing is known of its values.
REACH, INPUT_REACH = 6.0, 3.0


def batchnorm_ranges(model: nn.Module, layers: Sequence[Layer], request: Request) -> dict[str, Extremes]:
    """Return the extremes of the input of each of `layers`, by name.

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

    handles = [
        model.get_submodule(layer.name).register_forward_pre_hook(partial(enter, layer=layer), with_kwargs=True)
        for layer in layers
    ]
    try:
        with evaluating(model), torch.no_grad(), flow:
            images = shown(request)
            flow.note(images, _input_range(request.form))
            request.call(model, images)
    finally:
        for handle in handles:
            handle.remove()
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
    channels_are_features = convolution is not None or given.ndim == 2
    low, high = (own if channels_are_features else own.whole(REACH)).extent(REACH)
    width = convolution.in_channels if convolution else given.shape[-1]
    return Extremes(low.expand(width).clone(), high.expand(width).clone(), count=1)


def _placed(own: Extremes, request: Request) -> Extremes:
    return Extremes(own.low.to(request.device), own.high.to(request.device), own.count)
