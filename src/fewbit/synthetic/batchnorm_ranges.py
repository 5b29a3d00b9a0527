"""Ranges of the inputs and outputs of layers from BatchNorms alone: beta +- n |gamma|, through what lies between.

A norm puts out about N(beta, gamma^2) in each channel; n = 6 holds all of it. Source: DFQ, arXiv 1906.04721, 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fewbit.errors import CalibrationError
from fewbit.frontends.torch.calls import evaluating
from fewbit.interfaces import Layer
from fewbit.known_output import KnownOutput
from fewbit.problems import several
from fewbit.statistics.extremes import Extremes
from fewbit.synthetic.channel_range import ChannelRange
from fewbit.synthetic.image_form import ImageForm
from fewbit.synthetic.range_flow import RangeFlow
from fewbit.synthetic.range_watch import RangeWatch
from fewbit.synthetic.request import Request

#: How many deviations a range reaches to each side; of the input of the model, where nothing is known of its values.
REACH, INPUT_REACH = 6.0, 3.0


def batchnorm_ranges(
    model: nn.Module,
    inputs: Sequence[Layer],
    request: Request,
    *,
    outputs: Sequence[Layer] = (),
    known: Mapping[str, KnownOutput] | None = None,
) -> tuple[dict[str, Extremes], dict[str, Extremes]]:
    """Return the extremes of the input of each of `inputs`, and of the output of each of `outputs`, by name.

    `known` are the outputs of layers that norms were folded into, as they are now; norms that stand say themselves.

    Raises:
        CalibrationError: layers behind something else than a BatchNorm, or before it, named all at once.

    """
    flow = RangeFlow(REACH)
    watch = RangeWatch(flow)
    with watch.on(model, inputs, outputs, known or {}), evaluating(model), torch.no_grad(), flow:
        images = shown(request)
        flow.note(images, _input_range(request.form))
        request.call(model, images)
    return _all_of(inputs, watch.inputs, "input", request), _all_of(outputs, watch.outputs, "output", request)


def shown(request: Request) -> Tensor:
    """Return a sample of noise, (1, *shape): what a model computes shows on any input."""
    return request.form.noise(request.generator(), 1)


def _input_range(form: ImageForm) -> ChannelRange:
    if form.low is not None and form.high is not None:
        return ChannelRange.between(form.low.flatten(), form.high.flatten(), REACH)
    spread = INPUT_REACH * form.deviation
    return ChannelRange.between((form.mean - spread).flatten(), (form.mean + spread).flatten(), REACH)


def _all_of(asked: Sequence[Layer], found: Mapping[str, Extremes], what: str, request: Request) -> dict[str, Extremes]:
    """Return what was found, where the model is; raises `CalibrationError` where something is missing."""
    if missing := [layer.name for layer in asked if layer.name not in found]:
        raise CalibrationError(
            f"{several(missing)}: no BatchNorm tells the range of its {what}; keep it, round its {what} dynamically "
            "('int8 token asym'), or calibrate on data or with calibration='synthetic'"
        )
    return {
        name: Extremes(own.low.to(request.device), own.high.to(request.device), own.count)
        for name, own in found.items()
    }
