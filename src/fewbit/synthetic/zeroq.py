"""Images distilled from BatchNorm statistics: noise that is moved until every BatchNorm sees what it saw in training.

L = sum over norms of ||mu(z) - mu_BN||^2 + ||sigma(z) - sigma_BN||^2, and the same of the input with its own mean and
deviation; Adam at 0.5, divided by 10 on plateaus. Source: ZeroQ, arXiv 2001.00281.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewbit.errors import CalibrationError
from fewbit.frontends.torch.calls import evaluating
from fewbit.synthetic.images import SyntheticImages
from fewbit.synthetic.norm_inputs import NormInputs, distance, norms_of, remembered
from fewbit.synthetic.request import Request, gradients

#: The rate for inputs of deviation 1; when it has fallen below the least one, nothing moves any more.
_RATE, _LEAST_RATE = 0.5, 1e-4
_PATIENCE = 100
#: An improvement by less is none.
_LEAST_GAIN = 0.01


def distilled(model: nn.Module, request: Request) -> SyntheticImages:
    """Return images on which the BatchNorms of `model` are given what they remember.

    Raises:
        CalibrationError: a model without such norms, or one that takes other images.
        NonFiniteError: a loss that is NaN or infinite.

    """
    norms = norms_of(model)
    if not norms:
        raise CalibrationError(
            f"{type(model).__name__} has no BatchNorm that remembers statistics, so zeroq has nothing to distill "
            "images from; use method 'patch-similarity' for attention, or give samples"
        )
    draw, batches = request.generator(), []
    with evaluating(model), NormInputs(norms) as inputs, torch.enable_grad():
        for number, size in enumerate(request.sizes, 1):
            batches.append(_Batch(model, request, inputs, request.form.noise(draw, size)))
            batches[-1].distill(f"distill images {number}")
    first, last = (sum(own.losses[end] for own in batches) / len(batches) for end in (0, 1))
    return SyntheticImages(
        batches=tuple(own.best.to(request.device, request.dtype) for own in batches),
        method="zeroq",
        losses=(first, last),
        iterations=max(own.steps for own in batches),
    )


class _Batch:
    """Images that are optimized together."""

    def __init__(self, model: nn.Module, request: Request, inputs: NormInputs, start: Tensor) -> None:
        self._model, self._request, self._inputs = model, request, inputs
        self._images = start.to(request.device).requires_grad_()
        #: The images of the least loss so far.
        self.best = start
        #: The loss at the start, and the least.
        self.losses = [float("inf"), float("inf")]
        self.steps = 0

    def distill(self, description: str) -> None:
        """Take the steps that are asked for, fewer where the rate has run out."""
        form = self._request.form
        optimizer = torch.optim.Adam([self._images], lr=_RATE * float(form.deviation.mean()))
        least = _LEAST_RATE * float(form.deviation.mean())
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, min_lr=least, patience=_PATIENCE, threshold=_LEAST_GAIN
        )
        for step in self._request.progress.track(range(self._request.iterations), description):
            loss = self._loss()
            (self._images.grad,) = gradients(self._model, loss, [self._images])
            self._keep(float(loss.detach()))
            optimizer.step()
            with torch.no_grad():
                self._images.copy_(form.within(self._images))
            schedule.step(float(loss.detach()))
            self.steps = step + 1
            if optimizer.param_groups[0]["lr"] <= least:
                break
        with torch.no_grad():
            self._keep(float(self._loss()))

    def _keep(self, loss: float) -> None:
        """Take note of the loss of the images as they are."""
        if self.losses[0] == float("inf"):
            self.losses[0] = loss
        if loss < self.losses[1]:
            self.losses[1] = loss
            self.best = self._images.detach().clone()

    def _loss(self) -> Tensor:
        form = self._request.form
        self._inputs.clear()
        self._request.call(self._model, self._images)
        channels = form.shape[0]
        own = [side.to(self._images.device).reshape(-1).expand(channels) for side in (form.mean, form.deviation)]
        each = self._request.per_sample
        total = distance(self._images, *own, per_sample=each)
        seen = list(self._inputs.seen)
        if not any(values.requires_grad for _, values in seen) and torch.is_grad_enabled():
            raise CalibrationError(
                f"no gradient comes through the forward of {type(self._model).__name__} to its BatchNorms, which run "
                f"{len(seen)} times on images; give samples"
            )
        for norm, values in seen:
            total = total + distance(values, *remembered(norm), per_sample=each)
        self._inputs.clear()
        return total
