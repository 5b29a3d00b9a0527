"""Which data a module can make for itself: by its BatchNorms, its attention, or the text that it writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fewbit.errors import CalibrationError
from fewbit.evaluation.token_ids import writes_text
from fewbit.frontends.torch.calls import evaluating
from fewbit.synthetic.attention_outputs import AttentionOutputs
from fewbit.synthetic.image_form import declared
from fewbit.synthetic.norm_inputs import norms_of
from fewbit.synthetic.options import Synthetic
from fewbit.synthetic.request import Request


def chosen(model: Any, given: Synthetic) -> str:
    """Return the method that `given` names, or the one for `model`; `self`: it writes text.

    Raises:
        CalibrationError: no torch module, or one that there is no method for.

    """
    if not isinstance(model, nn.Module):
        raise CalibrationError(
            "synthetic data needs a torch module, and this is an ONNX model: its BatchNorms are folded, mostly, and "
            "nothing else in it tells what goes in; quantize the module that it was exported from, or give samples"
        )
    if given.method != "auto":
        return given.method
    if norms_of(model):
        return "zeroq"
    if writes_text(model):
        if given.iterations is not None:
            raise CalibrationError(
                f"iterations {given.iterations} are those of images, and {type(model).__name__} writes text; leave "
                "them out"
            )
        return "self"
    if _sees_attention(model, given):
        return "patch-similarity"
    raise CalibrationError(
        f"{type(model).__name__} has no BatchNorm that remembers statistics, shows no attention between patches of an "
        "image, and writes no text: there is nothing to make data from; give samples or batches"
    )


def _sees_attention(model: nn.Module, given: Synthetic) -> bool:
    """Whether it takes images, as a convolution tells, and a run on noise shows attention."""
    from fewbit.interfaces import Silent

    images = any(isinstance(own, nn.Conv2d) for own in model.modules()) or declared(model) is not None
    if not images and given.shape is None and given.preprocessing is None:
        return False
    request = Request.of(model, given, 1, 0, Silent())
    with evaluating(model), torch.no_grad():
        noise = request.form.noise(request.generator(), 1)
        outputs = AttentionOutputs(1)
        with outputs.of(model):
            request.call(model, noise)
    return bool(outputs.seen)
