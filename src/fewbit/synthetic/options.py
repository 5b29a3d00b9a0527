"""What images a model makes for its own calibration, and by which method."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.catalogue import lookup, unknown
from fewbit.errors import CalibrationError
from fewbit.samples.preprocessing import Preprocessing

if TYPE_CHECKING:
    from fewbit.interfaces import Progress
    from fewbit.synthetic.images import SyntheticImages

#: What makes images, by the name of the method.
METHODS = {
    "zeroq": "fewbit.synthetic.zeroq:distilled",
    "generator": "fewbit.synthetic.generator:generated",
    "patch-similarity": "fewbit.synthetic.patch_similarity:similar_patches",
}
#: Steps of the optimizer; those of images as in their papers.
ITERATIONS = {"zeroq": 500, "generator": 500, "patch-similarity": 500}
#: Images to make, and how many of them at once.
SAMPLES, BATCH = 64, 32
#: No image has more numbers than this: 64 such in float32 take 16 GiB.
_LARGEST = 1 << 26
_WORDS = ("auto", "batchnorm", *METHODS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """Calibration without data: images that a module makes for itself, or the ranges that its BatchNorms know.

    >>> Synthetic(shape=(3, 224, 224), samples=32, iterations=100).method
    'auto'
    """

    #: `zeroq`: images with the statistics that BatchNorms remember; `generator`: a generator is trained to do so, image
    #: and label; `patch-similarity`: images for transformers without BatchNorm; `batchnorm`: no images at all, static
    #: ranges from BatchNorms alone, what `calibration="none"` means. `auto`: by what the model has.
    method: str = "auto"
    #: Images to make, 64 if left out, and how many at once.
    samples: int | None = None
    batch_size: int = BATCH
    #: Steps of the optimizer at most, 500 if left out.
    iterations: int | None = None
    #: Channels, height and width of an image; left out: as the model says, where it does.
    shape: tuple[int, ...] | None = None
    #: Of `zeroq`: every image has the statistics of the norms, as in the code of the paper; else a batch of them has,
    #: which leaves images as different as those of training were.
    per_sample: bool = False
    #: How many of the outputs are classes; left out: all.
    classes: int | None = None
    #: The least and the largest value that inputs have; left out: as `preprocessing` says, or mean 0 and deviation 1.
    values: tuple[float, float] | None = None
    #: What is done to photographs before the model sees them, which tells shape and values; or a TOML file of it.
    preprocessing: Preprocessing | str | Path | None = None

    def __post_init__(self) -> None:
        if self.method not in _WORDS:
            raise CalibrationError(unknown(str(self.method), _WORDS, what="method of synthetic data"))
        for name in ("samples", "batch_size", "iterations", "classes"):
            given = getattr(self, name)
            if (given is not None or name == "batch_size") and (type(given) is not int or given < 1):
                raise CalibrationError(f"{name} {given!r:.80} of synthetic data; give 1 at least, or leave it out")
        if self.shape is not None:
            object.__setattr__(self, "shape", _shape(self.shape))
        if self.values is not None:
            object.__setattr__(self, "values", _values(self.values))
        if isinstance(self.preprocessing, (str, Path)):
            object.__setattr__(self, "preprocessing", Preprocessing.from_toml(self.preprocessing))

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """The least and the largest value of each channel, one for all of them, or `None`: not known.

        >>> Synthetic(preprocessing=Preprocessing(size=8, mean=0.5, std=0.25)).bounds
        ((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0))
        """
        if self.values is not None:
            return (self.values[0],), (self.values[1],)
        own: Any = self.preprocessing
        if own is None:
            return None
        ends = [
            sorted(((0.0 - mean) / std, (255 * own.factor - mean) / std))
            for mean, std in zip(own.mean, own.std, strict=True)
        ]
        return tuple(low for low, _ in ends), tuple(high for _, high in ends)

    def images(self, model: Any, *, seed: int = 0, progress: Progress | None = None) -> SyntheticImages:
        """Return the images that a torch module makes, with labels where the method gives some.

        Raises:
            CalibrationError: a model that the method cannot do anything with, or one that does not say what shape of
                input it takes.
            NonFiniteError: a loss that is NaN or infinite.

        """
        from fewbit.interfaces import Silent
        from fewbit.synthetic.choice import chosen
        from fewbit.synthetic.request import Request

        method = chosen(model, self)
        if method not in METHODS:
            raise CalibrationError(f"method {method!r} makes no images; use one of {', '.join(METHODS)}")
        request = Request.of(model, self, ITERATIONS[method], seed, progress or Silent())
        made: SyntheticImages = lookup(METHODS, method, what="method of synthetic data")(model, request)
        return made


def _shape(given: Any) -> tuple[int, ...]:
    sizes = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if not 1 <= len(sizes) <= 4 or not all(type(size) is int and size > 0 for size in sizes):
        raise CalibrationError(f"shape {given!r:.80} is not channels, height and width; give (3, 224, 224), say")
    if prod(sizes) > _LARGEST:
        raise CalibrationError(f"shape {given!r:.80} has {prod(sizes):,} numbers; more than {_LARGEST:,} are not made")
    return sizes


def _values(given: Any) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in given)
    except (TypeError, ValueError):
        low = high = 0.0
    if not -1e6 < low < high < 1e6:
        raise CalibrationError(f"values {given!r:.80} are not the least and the largest of inputs; give (-1, 1), say")
    return low, high
