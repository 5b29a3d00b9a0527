"""Images by a generator that is trained against the classifier: they have its statistics, and it tells their labels.

L = CE(T(G(z | y)), y) + 0.1 mean over norms of the squared distance of batch mean and variance from what the norm
remembers; Adam 1e-3, (0.5, 0.999). Source: GDFQ, arXiv 2003.03603.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewbit.errors import CalibrationError
from fewbit.frontends.torch.calls import evaluating
from fewbit.synthetic.image_form import ImageForm
from fewbit.synthetic.images import SyntheticImages
from fewbit.synthetic.norm_inputs import NormInputs, batch_distance, norms_of
from fewbit.synthetic.request import Request, gradients

_LATENT, _CHANNELS = 100, 64
_STATISTICS = 0.1
_RATE, _BETAS = 1e-3, (0.5, 0.999)
#: Sides of the first map, at most; each layer doubles them.
_FIRST_SIDE = 8


class Generator(nn.Module):
    """G(z | y): an embedding of the label times noise, then convolutions that double the sides of a map."""

    def __init__(self, form: ImageForm, classes: int) -> None:
        super().__init__()
        channels, *sides = form.shape
        doublings = max(2, (ceil(max(sides) / _FIRST_SIDE) - 1).bit_length())
        self._sides, self._form = tuple(sides), form
        self._first = tuple(ceil(side / 2**doublings) for side in sides)
        self.labels = nn.Embedding(classes, _LATENT)
        self.spread = nn.Linear(_LATENT, _CHANNELS * self._first[0] * self._first[1])
        self.start = nn.BatchNorm2d(_CHANNELS)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=2), nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1),
                nn.BatchNorm2d(_CHANNELS), nn.LeakyReLU(0.2),
            )
            for _ in range(doublings)
        )  # fmt: skip
        self.last = nn.Conv2d(_CHANNELS, channels, 3, padding=1)
        #: Images have mean 0 and deviation 1, where nothing is known of their values.
        self.normal = nn.BatchNorm2d(channels, affine=False) if form.low is None else nn.Identity()

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return images (count, *shape) for `noise` (count, 100) and `labels` (count,)."""
        hidden = self.spread(self.labels(labels) * noise)
        hidden = self.start(hidden.reshape(-1, _CHANNELS, *self._first))
        for layer in self.layers:
            hidden = layer(hidden)
        images: Tensor = self.normal(self.last(hidden).tanh())[:, :, : self._sides[0], : self._sides[1]]
        if self._form.low is None or self._form.high is None:
            return images
        low, high = self._form.low.to(images), self._form.high.to(images)
        return torch.lerp(low, high, (images + 1) / 2)


def generated(model: nn.Module, request: Request) -> SyntheticImages:
    """Return images and labels of a generator that is trained against `model`.

    Raises:
        CalibrationError: a model without BatchNorms, no scores of classes come out, or it takes other images.
        NonFiniteError: a loss that is NaN or infinite.

    """
    if not norms_of(model):
        raise CalibrationError(
            f"{type(model).__name__} has no BatchNorm that remembers statistics to train a generator against; use "
            "method 'patch-similarity' for attention, or give samples"
        )
    if len(request.form.shape) != 3:
        raise CalibrationError(f"shape {request.form.shape} is no image; give channels, height and width")
    run = _Training(model, request)
    with evaluating(model), torch.enable_grad():
        run.train()
    with evaluating(model), torch.no_grad():
        pairs = [run.drawn(size) for size in request.sizes]
        right = sum(int((request.scores(model, images).argmax(1) == labels).sum()) for images, labels in pairs)
    return SyntheticImages(
        batches=tuple(images.to(request.dtype) for images, _ in pairs),
        method="generator",
        losses=(run.losses[0], run.losses[-1]),
        iterations=request.iterations,
        labels=tuple(labels for _, labels in pairs),
        notes=(f"the model gives {right} of them the label that they were made for",),
    )


class _Training:
    """A generator and what it is trained with."""

    def __init__(self, model: nn.Module, request: Request) -> None:
        self._model, self._request, self._draw = model, request, request.generator()
        with evaluating(model), torch.no_grad():
            self._classes = request.scores(model, request.form.noise(self._draw, 2)).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            self._generator = Generator(request.form, self._classes).to(request.device)
        self.losses: list[float] = []

    def train(self) -> None:
        """Take the steps that are asked for."""
        parameters = list(self._generator.parameters())
        optimizer = torch.optim.Adam(parameters, lr=_RATE, betas=_BETAS)
        self._generator.train()
        with NormInputs(norms_of(self._model)) as inputs:
            for _ in self._request.progress.track(range(self._request.iterations), "train a generator"):
                loss = self._loss(inputs)
                found = gradients(self._model, loss, parameters)
                for parameter, gradient in zip(parameters, found, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                self.losses.append(float(loss.detach()))
        self._generator.eval()

    def drawn(self, count: int) -> tuple[Tensor, Tensor]:
        """Return `count` images and their labels."""
        noise = torch.randn(count, _LATENT, generator=self._draw).to(self._request.device)
        labels = torch.randint(self._classes, (count,), generator=self._draw).to(self._request.device)
        images: Any = self._generator(noise, labels)
        return images, labels

    def _loss(self, inputs: NormInputs) -> Tensor:
        images, labels = self.drawn(max(2, self._request.batch_size))
        inputs.clear()
        scores = self._request.scores(self._model, images)
        distances = torch.stack([batch_distance(values, norm) for norm, values in inputs.seen])
        inputs.clear()
        return functional.cross_entropy(scores, labels) + _STATISTICS * distances.mean()
