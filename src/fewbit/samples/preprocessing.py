"""What is done to an image before a model sees it: x = (pixels * scale - mean) / std, resized, in a layout of axes.

Described by a table, as the cards of models give it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fewbit.catalogue import unknown
from fewbit.errors import RecipeError
from fewbit.toml_table import LARGEST, parse_table

RESIZES = ("crop", "stretch")
CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
LAYOUTS = ("NCHW", "NHWC")
DTYPES = ("float32", "float16", "uint8")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
#: Pixels of a side; no model takes more.
_LARGEST_SIDE = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How pixels, from 0 to 255, become the input of a model.

    >>> Preprocessing(size=224, shorter_side=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).shape
    (3, 224, 224)
    """

    #: Pixels of height and width, or of both.
    size: int | tuple[int, int]
    #: `crop`: the shorter side is resized, and the centre is cut out; `stretch`: both sides are resized.
    resize: str = "crop"
    #: What the shorter side is resized to before the crop; left out: to the longer side of `size`.
    shorter_side: int | None = None
    #: How pixels between pixels are found.
    interpolation: str = "bilinear"
    #: Which channels there are, in which order.
    channels: str = "rgb"
    #: What pixels are multiplied by; left out: 1/255 for floats, 1 for uint8.
    scale: float | None = None
    #: Subtracted after that, and divided by then: a number, or one for each channel in their order.
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    #: The axes of a batch.
    layout: str = "NCHW"
    #: The type of the result.
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _require_one_of("resize", self.resize, RESIZES)
        _require_one_of("interpolation", self.interpolation, INTERPOLATIONS)
        _require_one_of("channels", self.channels, CHANNELS)
        _require_one_of("layout", self.layout, LAYOUTS)
        _require_one_of("dtype", self.dtype, DTYPES)
        sides = (self.size, self.size) if not isinstance(self.size, (tuple, list)) else tuple(self.size)
        if len(sides) != 2 or not all(_is_side(side) for side in sides):
            raise RecipeError(f"size = {self.size!r:.80} is not a number of pixels or [height, width]")
        object.__setattr__(self, "size", sides)
        if self.shorter_side is not None and (self.resize != "crop" or not _is_side(self.shorter_side)):
            raise RecipeError(
                f"shorter_side = {self.shorter_side!r:.80} is not a number of pixels, or there is no crop"
            )
        if self.shorter_side is not None and self.shorter_side < max(sides):
            raise RecipeError(
                f"shorter_side = {self.shorter_side} is less than size = {max(sides)}; nothing to crop from"
            )
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._by_channel(name))
        if self.scale is not None and not _is_number(self.scale):
            raise RecipeError(f"scale = {self.scale!r:.80} is not a number")
        if self.dtype == "uint8" and (self.factor, set(self.mean), set(self.std)) != (1, {0}, {1}):  # type: ignore[arg-type]
            raise RecipeError("dtype = 'uint8' takes pixels as they are; leave out scale, mean and std, or use a float")

    def _by_channel(self, name: str) -> tuple[float, ...]:
        given, count = getattr(self, name), CHANNELS[self.channels]
        values = tuple(given) if isinstance(given, (tuple, list)) else (given,) * count
        if len(values) != count or not all(map(_is_number, values)) or (name == "std" and not all(values)):
            what = "and not 0" if name == "std" else "or one for all"
            raise RecipeError(f"{name} = {given!r:.80} is not {count} numbers, one for each channel {what}")
        return tuple(float(value) for value in values)

    @property
    def factor(self) -> float:
        """What pixels are multiplied by."""
        usual = 1.0 if self.dtype == "uint8" else 1 / 255
        return usual if self.scale is None else float(self.scale)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of a sample."""
        count = CHANNELS[self.channels]
        return (count, *self.sides) if self.layout == "NCHW" else (*self.sides, count)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @classmethod
    def from_toml(cls, path: str | Path) -> Preprocessing:
        """Return what the TOML file at `path` says.

        Raises:
            RecipeError: a file that cannot be read, no TOML, or a table with unknown keys or wrong values.

        """
        try:
            with Path(path).open(encoding="utf-8") as file:
                text = file.read(LARGEST + 1)
        except OSError as error:
            raise RecipeError(f"cannot read preprocessing {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"preprocessing {path} is not UTF-8: {error.reason} at byte {error.start}") from error
        try:
            return cls.from_table(parse_table(text, str(path)))
        except RecipeError as error:
            raise RecipeError(str(error) if str(path) in str(error) else f"{path}: {error}") from error

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Preprocessing:
        """Return what `table` says; raises `RecipeError` for unknown keys and wrong values."""
        known = [own.name for own in fields(cls)]
        for key in table:
            if key not in known:
                raise RecipeError(unknown(key, known, what="key of preprocessing"))
        if "size" not in table:
            raise RecipeError("preprocessing says no size; add size = 224, or [height, width]")
        return cls(**table)


def _require_one_of(name: str, given: object, known: Any) -> None:
    if not isinstance(given, str) or given not in known:
        raise RecipeError(unknown(str(given), known, what=name))


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_SIDE


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
