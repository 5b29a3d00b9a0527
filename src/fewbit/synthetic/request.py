"""What a method of synthetic images is asked for: how many of which form, in how many steps, from which seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import CalibrationError, NonFiniteError
from fewbit.frontends.torch.calls import hidden
from fewbit.interfaces import Progress
from fewbit.synthetic.image_form import ImageForm
from fewbit.synthetic.options import SAMPLES, Synthetic


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Images that are to be made."""

    form: ImageForm
    samples: int
    batch_size: int
    iterations: int
    #: How many outputs are classes; `None`: all.
    classes: int | None
    #: Whether each image is to have the statistics that are wanted, or the images of a batch together.
    per_sample: bool
    seed: int
    progress: Progress
    device: torch.device
    #: The type of the model's numbers.
    dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, given: Synthetic, iterations: int, seed: int, progress: Progress) -> Request:
        """Return what `given` asks of `model`; raises `CalibrationError` where the shape of images is not known."""
        parameter = next((own for own in model.parameters() if own.dtype.is_floating_point), torch.zeros(()))
        return cls(
            form=ImageForm.of(model, given),
            samples=given.samples or SAMPLES,
            batch_size=given.batch_size,
            iterations=given.iterations or iterations,
            classes=given.classes,
            per_sample=given.per_sample,
            seed=seed,
            progress=progress,
            device=parameter.device,
            dtype=parameter.dtype,
        )

    @property
    def sizes(self) -> list[int]:
        """How many images each batch has."""
        whole, rest = divmod(self.samples, self.batch_size)
        return [self.batch_size] * whole + ([rest] if rest else [])

    def generator(self) -> torch.Generator:
        """Return a source of random numbers; those of a processor are the same everywhere."""
        return torch.Generator().manual_seed(self.seed)

    def run(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the first tensor that `model` puts out for float32 `images`, in float32.

        Raises:
            CalibrationError: a forward that does not take them.

        """
        output = hidden(self.call(model, images))
        if output is None:
            raise CalibrationError(f"{type(model).__name__} puts out no tensor for an image; give samples")
        return output.float()

    def call(self, model: nn.Module, images: Tensor) -> Any:
        """Return what `model` puts out for float32 `images`; raises `CalibrationError` where it does not take them."""
        try:
            # A copy: a forward may write into what it is given, which a leaf of gradients forbids.
            return model(images.to(self.device, self.dtype, copy=True))
        except (RuntimeError, TypeError, ValueError) as error:
            raise CalibrationError(
                f"{type(model).__name__} does not run on images of shape {self.form.shape}: "
                f"{str(error).splitlines()[0]}; give the shape that it takes, or samples"
            ) from error

    def scores(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the scores (images, classes) of `images`; raises `CalibrationError` for a model that gives none."""
        output = self.run(model, images)
        if output.ndim != 2 or output.shape[1] < 2 or (self.classes or 0) > output.shape[1]:
            raise CalibrationError(
                f"{type(model).__name__} puts out {tuple(output.shape)} for {len(images)} images, not a score for "
                f"each of {self.classes or 'several'} classes; this method is for classifiers, give samples"
            )
        return output[:, : self.classes]


def gradients(model: nn.Module, loss: Tensor, of: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of a loss that `model` has given.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
        CalibrationError: no gradient comes through the model.

    """
    name = type(model).__name__
    if not bool(loss.isfinite()):
        raise NonFiniteError(
            f"the loss of synthetic images is {float(loss.detach())}: numbers of {name} overflow on noise; give "
            "values=(low, high) of its inputs, or run it in a wider type"
        )
    try:
        return torch.autograd.grad(loss, list(of))
    except RuntimeError as error:
        raise CalibrationError(
            f"no gradient comes through the forward of {name} to make images by "
            f"({str(error).splitlines()[0]}); give samples"
        ) from error
