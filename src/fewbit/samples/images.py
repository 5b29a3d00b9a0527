"""A folder of images, decoded and preprocessed when a batch is asked for, in the order of their names."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.errors import CalibrationError, MissingExtraError, RecipeError
from fewbit.samples.batches import Numbers
from fewbit.samples.model_input import ModelInput, only, require_fit
from fewbit.samples.preprocessing import Preprocessing

#: Endings of the files that count as images.
ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"))
#: What Pillow calls channels; blue comes first when these are turned round.
_MODES = {"rgb": "RGB", "bgr": "RGB", "gray": "L"}
#: What images with more than 8 bits a channel begin with; Pillow would cut them off at 255.
_DEEP = ("I", "F")


class ImageFolder:
    """The images of a folder and of the folders inside of it, each a sample; no image is turned by its EXIF data."""

    sizes: list[int] | None = None
    labels: Numbers | None = None

    def __init__(
        self, path: Path, inputs: Sequence[ModelInput] | None, preprocessing: Preprocessing | None = None
    ) -> None:
        """List the images below `path`; a `preprocessing` that does not fit `inputs` raises `CalibrationError`."""
        self._pillow = _pillow()
        if preprocessing is None:
            raise RecipeError(
                f"{path} holds images, and what is to be done to them is not known; give preprocessing: "
                "size, mean, std, layout"
            )
        self._table = preprocessing
        self._files = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS)
        #: Their names below the folder.
        self.names: list[str] | None = [file.relative_to(path).as_posix() for file in self._files]
        if inputs is not None:
            own = only(inputs, path)
            shape = (own.at_once or 1, *preprocessing.shape)
            require_fit(own, np.dtype(preprocessing.dtype), shape, f"{path}, preprocessed")

    def __len__(self) -> int:
        return len(self._files)

    def take(self, places: Sequence[int]) -> Numbers:
        """Return the images at `places`."""
        return np.stack([self._sample(self._files[place]) for place in places])

    def _sample(self, path: Path) -> Numbers:
        table = self._table
        pixels = np.asarray(self._resized(path))
        pixels = pixels[..., ::-1] if table.channels == "bgr" else pixels.reshape(*pixels.shape[:2], -1)
        if table.dtype != "uint8":
            # In float32, as what models were trained with; the factors are rounded once.
            mean, std = np.asarray(table.mean, np.float32), np.asarray(table.std, np.float32)
            pixels = (pixels * np.float32(table.factor) - mean) / std
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0) if table.layout == "NCHW" else pixels, table.dtype)

    def _resized(self, path: Path) -> Any:
        image = self._decoded(path)
        table = self._table
        height, width = table.sides
        how = self._pillow.Resampling[table.interpolation.upper()]
        if table.resize == "stretch":
            return image.resize((width, height), how)
        shorter = table.shorter_side or max(height, width)
        short = min(image.size)
        wide, high = (shorter * side // short for side in image.size)
        left, top = round((wide - width) / 2), round((high - height) / 2)
        return image.resize((wide, high), how).crop((left, top, left + width, top + height))

    def _decoded(self, path: Path) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", self._pillow.DecompressionBombWarning)
                with self._pillow.open(path) as image:
                    if image.mode.startswith(_DEEP):
                        raise CalibrationError(
                            f"{path} has pixels of mode {image.mode}, more than 8 bits; save it with 8 bits a channel"
                        )
                    return image.convert(_MODES[self._table.channels])
        except CalibrationError:
            raise
        except Exception as error:  # every decoder has errors of its own
            raise CalibrationError(f"{path} is no image that can be read: {error}; replace or remove it") from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(f"images need {error.name}; pip install 'fewbit[images]'") from error
    return Image
