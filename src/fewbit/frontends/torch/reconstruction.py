"""A block of a module as a function of the weights of some of its layers, for algorithms that train them together.

The layers are quantized and installed already; while the block runs they hold trial weights, so that their inputs and
outputs are rounded as they will be. Samples are calls of the block, targets what it put out behind float blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import CalibrationError
from fewbit.frontends.torch.block_inputs import BlockInputs
from fewbit.frontends.torch.calls import Call, configured_without_cache, evaluating, hidden, same, size
from fewbit.frontends.torch.joined_calls import joined
from fewbit.frontends.torch.loss_gradient import LossGradient
from fewbit.frontends.torch.module_chain import chained, modules_in
from fewbit.frontends.torch.output_curvature import output_curvature
from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.interfaces import CalibratedPart, Layer
from fewbit.samples.batches import Mapped

#: Numbers in the arguments of calls that are run as one, by kind of device; for gradients there are many times as many.
_AT_ONCE, _ELSEWHERE = {"cpu": 1 << 22}, 1 << 26
#: Roundings by which outputs may differ: products of more rows add in another order.
_ROUNDINGS = 2.0**8


@dataclass(slots=True)
class SideBySide:
    """What is known of runs of several samples at once."""

    #: Whether one put out what runs one by one do; `None`: it has not been tried.
    alike: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """What a part of a model is to put out, and a way to run it."""

    model: nn.Module
    #: Dotted path of what runs, or several as a chain; empty: the model.
    name: str
    calls: Sequence[Call]
    #: Its output before any of its layers was quantized, by call.
    targets: Sequence[Tensor]
    #: What the model loses, and the batches to see it on.
    loss: LossGradient
    batches: Sequence[Any]
    #: How much an error of each row of each target counts, (rows,); `None`: not known.
    row_weights: Sequence[Tensor] | None = None
    #: Whether samples may be run at once.
    side_by_side: SideBySide = field(default_factory=SideBySide)

    def forward(self, weights: Mapping[str, Tensor], sample: int) -> Tensor:
        """Return the output for the call number `sample` under these weights (out, in), differentiable in them."""
        self._hold(weights)
        return self._run(self.calls[sample].copy())  # a module may write into what it is given

    def together(self, weights: Mapping[str, Tensor], samples: Sequence[int]) -> list[Tensor] | None:
        """Return the outputs for some samples from one run, if that has been seen to put out the same; else `None`.

        Nor are calls joined whose gradients would take much memory.
        """
        if len(samples) < 2 or self.side_by_side.alike is False:
            return None
        calls = [self.calls[sample].copy() for sample in samples]
        numbers = sum(size([call.args, dict(call.kwargs)]) for call in calls)
        if numbers > _AT_ONCE.get(self.targets[0].device.type, _ELSEWHERE) or (found := joined(calls)) is None:
            return None
        call, counts = found
        self._hold(weights)
        if self.side_by_side.alike is None:
            self.side_by_side.alike = self._alike(call, counts, samples)
        return list(torch.split(self._run(call), counts)) if self.side_by_side.alike else None

    @torch.no_grad()
    def _alike(self, call: Call, counts: Sequence[int], samples: Sequence[int]) -> bool:
        """Whether one run puts out what a run of each sample does, in the precision of the block itself."""
        with torch.autocast(self.targets[0].device.type, enabled=False):
            alone = [self._run(self.calls[sample].copy()) for sample in samples]
            output = self._run(call.copy())
        return len(output) == sum(counts) and same(torch.cat(alone), output, _ROUNDINGS)

    def _hold(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            layer = self.model.get_submodule(name)
            assert isinstance(layer, QuantizedLayer)
            layer.hold(weight)

    def _run(self, call: Call) -> Tensor:
        module = chained(self.model, self.name) if self.name else self.model
        with evaluating(module), configured_without_cache(module):
            return _first_tensor(module(*call.args, **call.kwargs))

    def curvature(self) -> list[Tensor] | None:
        """Return how much errors at the output for each call count for the model, as it now is; `None`: not known.

        Nothing is known of a part that is the whole model.
        """
        if not self.name:
            return None
        found = output_curvature(self.loss, modules_in(self.model, self.name)[-1], self.batches)
        fits = found is not None and [own.shape for own in found] == [own.shape for own in self.targets]
        return found if fits else None


def block_part(
    layers: tuple[Layer, ...],
    step: BlockInputs,
    loss: LossGradient,
    batches: Sequence[Any],
    row_weights: Sequence[Tensor] | None = None,
) -> CalibratedPart:
    """Return the layers of a block that are to be trained, each quantized and installed by now.

    `row_weights` is what rows of its output count, by batch.
    """
    if not (step.link.replayable and step.calls):
        why = "it cannot be run on its own" if step.link.calls else "no calibration input reached it"
        return CalibratedPart(layers, {}, remarks=(f"its block {step.name} was not trained: {why}",))
    targets = [_first_tensor(output) for output in step.float_outputs]
    known = row_weights if row_weights and len(row_weights) == len(targets) else None
    block = Reconstruction(
        model=loss.model, name=step.name, calls=step.calls, targets=targets, loss=loss, batches=batches,
        row_weights=known,
    )  # fmt: skip
    remarks = () if step.alongside else (f"{step.name} was trained for its float output on quantized inputs",)
    return CalibratedPart(layers, {}, block=block, remarks=remarks)


def model_part(layers: tuple[Layer, ...], loss: LossGradient, batches: Sequence[Any]) -> CalibratedPart:
    """Return layers outside of blocks, not quantized yet, to be trained for the output of the model as it now is."""
    model, calls = loss.model, Mapped(Call.of, batches)
    with configured_without_cache(model):
        targets = [_first_tensor(call.copy().run(model)) for call in calls]
    block = Reconstruction(model=model, name="", calls=calls, targets=targets, loss=loss, batches=batches)
    return CalibratedPart(layers, {}, block=block)


def _first_tensor(output: Any) -> Tensor:
    found = hidden(output)
    if found is None or not torch.is_floating_point(found):
        raise CalibrationError(
            f"an output of type {type(output).__name__} begins with no float tensor to train for; use gptq"
        )
    return found
