"""Images for transformers without BatchNorm: noise that is moved until the patches differ as those of photographs do.

L = -sum over layers of H(density of cos(o_i, o_j)) + CE(scores, random label) + 0.05 TV, with o_i what attention puts
out for patch i and H the differential entropy. Source: PSAQ-ViT, arXiv 2203.02250.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewbit.errors import CalibrationError
from fewbit.frontends.torch.calls import evaluating
from fewbit.synthetic.attention_outputs import AttentionOutputs
from fewbit.synthetic.images import SyntheticImages
from fewbit.synthetic.request import Request, gradients

#: For inputs of deviation 1.
_RATE = 0.2
_VARIATION = 0.05
#: Images are moved by up to this part of their sides in each step.
_JITTER = 1 / 8
#: The kernel of the density is a normal one of this width; its grid has steps of a fifth of that, and ends where the
#: kernel of a similarity of 1 has.
_WIDTH = 0.1
_POINTS = torch.arange(-1.0 - 4 * _WIDTH, 1.0 + 4 * _WIDTH + 1e-6, _WIDTH / 5)


def similar_patches(model: nn.Module, request: Request) -> SyntheticImages:
    """Return images on which the patches of `model` have similarities of the largest entropy, and their labels.

    Raises:
        CalibrationError: a run shows no attention, no scores of classes come out, or it takes other images.
        NonFiniteError: a loss that is NaN or infinite.

    """
    if len(request.form.shape) != 3:
        raise CalibrationError(f"shape {request.form.shape} has no patches; give channels, height and width")
    draw = request.generator()
    images, labels, losses, entropies = [], [], [], []
    with evaluating(model), torch.enable_grad():
        for number, size in enumerate(request.sizes, 1):
            batch = _Batch(model, request, size, draw)
            batch.move(f"make images {number}")
            images.append(batch.images.detach().to(request.device, request.dtype))
            labels.append(batch.labels)
            losses.append(batch.losses)
            entropies.append(batch.entropies)
    first, last = (sum(own[end] for own in losses) / len(losses) for end in (0, -1))
    rise = [sum(own[end] for own in entropies) / len(entropies) for end in (0, -1)]
    return SyntheticImages(
        batches=tuple(images),
        method="patch-similarity",
        losses=(first, last),
        iterations=request.iterations,
        labels=tuple(labels),
        notes=(f"entropy of patch similarity {rise[0]:.3g} -> {rise[1]:.3g} a layer",),
    )


class _Batch:
    """Images that are moved together."""

    def __init__(self, model: nn.Module, request: Request, size: int, draw: torch.Generator) -> None:
        self._model, self._request, self._draw = model, request, draw
        self._outputs = AttentionOutputs(size)
        start = request.form.noise(draw, size).to(request.device)
        with torch.no_grad():
            classes = request.scores(model, start).shape[1]
        self.labels = torch.randint(classes, (size,), generator=draw).to(request.device)
        self.images = start.requires_grad_()
        #: Loss and mean entropy of a layer, step by step, the last ones without jitter as the first.
        self.losses: list[float] = []
        self.entropies: list[float] = []

    def move(self, description: str) -> None:
        """Take the steps that are asked for."""
        form = self._request.form
        optimizer = torch.optim.Adam([self.images], lr=_RATE * float(form.deviation.mean()))
        with torch.no_grad():
            self._loss(self.images)
        for _ in self._request.progress.track(range(self._request.iterations), description):
            loss = self._loss(self._jittered())
            (self.images.grad,) = gradients(self._model, loss, [self.images])
            optimizer.step()
            with torch.no_grad():
                self.images.copy_(form.within(self.images))
        with torch.no_grad():
            self._loss(self.images)

    def _jittered(self) -> Tensor:
        """Return the images rolled a little and, each other time, mirrored."""
        most = [max(1, int(side * _JITTER)) for side in self.images.shape[2:]]
        shifts = [int(torch.randint(-side, side + 1, (), generator=self._draw)) for side in most]
        moved = self.images.roll(shifts, (2, 3))
        return moved.flip(3) if int(torch.randint(2, (), generator=self._draw)) else moved

    def _loss(self, images: Tensor) -> Tensor:
        with self._outputs.of(self._model):
            scores = self._request.scores(self._model, images)
        if not self._outputs.seen:
            raise CalibrationError(
                f"a run of {type(self._model).__name__} shows no attention between patches; use method 'zeroq' for "
                "BatchNorms, or give samples"
            )
        entropy = torch.stack([patch_entropy(own) for own in self._outputs.seen])
        self._outputs.seen.clear()
        loss = functional.cross_entropy(scores, self.labels) - entropy.sum() + _VARIATION * total_variation(images)
        self.losses.append(float(loss.detach()))
        self.entropies.append(float(entropy.detach().mean()))
        return loss


def patch_entropy(outputs: Tensor) -> Tensor:
    """Return the entropy of the cosine similarities of patches (samples, patches, numbers), a mean over samples."""
    unit = functional.normalize(outputs.float(), dim=2)
    first, second = torch.triu_indices(unit.shape[1], unit.shape[1], 1, device=unit.device)
    found = (unit @ unit.transpose(1, 2))[:, first, second]
    return torch.stack([differential_entropy(own) for own in found]).mean()


def differential_entropy(similarities: Tensor) -> Tensor:
    """Return -integral of f log f of the normal kernel density f of numbers in [-1, 1], float32.

    Numbers are divided between the two points of a grid beside them, and the kernel is applied to the grid: the work
    grows with their count alone.
    """
    points = _POINTS.to(similarities.device)
    step = float(points[1] - points[0])
    place = (similarities.clamp(-1.0, 1.0) - float(points[0])) / step
    below = place.detach().floor()
    share = place - below
    index = below.long()
    counts = torch.zeros(len(points), device=points.device).index_add(0, index, 1 - share)
    counts = counts.index_add(0, index + 1, share)
    kernel = torch.exp(-0.5 * ((points[:, None] - points) / _WIDTH) ** 2) / (_WIDTH * math.sqrt(2 * math.pi))
    density = kernel @ counts / similarities.numel()
    return -(density * density.clamp_min(1e-12).log()).sum() * step


def total_variation(images: Tensor) -> Tensor:
    """Return ||differences of neighbours|| down and across an image (samples, channels, height, width), a mean."""
    norms = [images.diff(dim=axis).square().sum((1, 2, 3)).clamp_min(1e-12).sqrt() for axis in (2, 3)]
    return (norms[0] + norms[1]).mean()
