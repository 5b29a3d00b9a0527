"""Outlier channel splitting: the channels with the largest weights are there twice, with half of their weights each.

w x = (w - h) / 2 x + (w + h) / 2 x; h is 0, or half a step: then the halves round together as w does on the grid. Of a
convolution a channel is a column at every kernel position. Source: Zhao et al. 2019, arXiv 1901.09504, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, TypeAlias

import numpy as np

from fewbit.errors import RecipeError
from fewbit.formats.integer import Int
from fewbit.schemes.granularity import PerChannel
from fewbit.schemes.scheme import Scheme
from fewbit.transforms import Applied
from fewbit.transforms.link import Channels
from fewbit.transforms.scope import Rounded

Matrix: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
#: From float64 columns (rows, in) of all consumers, and which output each row is of, to the channel that each new
#: column is of, and the new columns.
Split: TypeAlias = Callable[[Matrix, Channels], tuple[Channels, Matrix]]


@dataclass(frozen=True, slots=True)
class OutlierSplitting:
    """Split input channels of layers whose inputs another layer makes, which gets more rows; or copy channels."""

    #: It makes layers wider.
    removes_layers: ClassVar[bool] = False
    #: Producers have more rows, consumers more columns.
    widens_layers: ClassVar[bool] = True
    #: Channels that are added, as a share of those that there are.
    ratio: float = 0.02
    #: How many are added is a multiple of this, so that groups still fit the width.
    multiple: int = 32
    #: Of an integer scheme with a scale a row: halves then differ by half of its step. 0: they are the same.
    bits: int = 0
    #: Split channels too that cannot be made twice, as behind norms: a gather copies them whenever the model runs.
    gather: bool = False

    def __post_init__(self) -> None:
        number = isinstance(self.ratio, int | float) and not isinstance(self.ratio, bool)
        if not number or not 0.0 < self.ratio <= 1.0:
            raise RecipeError(f"outlier-splitting: ratio {self.ratio!r:.80} is outside (0, 1]; 0.02 is usual")
        if type(self.multiple) is not int or self.multiple < 1:
            raise RecipeError(
                f"outlier-splitting: multiple {self.multiple!r:.80} is no number of channels; 32 is usual"
            )
        if type(self.bits) is not int or not (self.bits == 0 or 2 <= self.bits <= 8):
            raise RecipeError(f"outlier-splitting: bits {self.bits!r:.80} is neither 0 nor from 2 to 8")
        if not isinstance(self.gather, bool):
            raise RecipeError(f"outlier-splitting: gather = {self.gather!r:.80} is not true or false")

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "outlier-splitting"

    def problem(self, schemes: Mapping[str, Rounded]) -> str | None:
        """Return that no weight is rounded to a scale, or to none with the step that halves are to differ by, if so."""
        weights = [own.weight for own in schemes.values()]
        if not any(weight.scaled for weight in weights):
            return "outlier-splitting halves the columns that set the scales of weights, and none has one; leave it out"
        if self.bits and not any(self._has_step(weight) for weight in weights):
            return (
                f"outlier-splitting: bits = {self.bits} sets halves apart by half a step of 'int{self.bits} channel', "
                f"and no weight is rounded so but to '{weights[0]}'; leave bits out"
            )
        return None

    def _has_step(self, weight: Scheme) -> bool:
        form = weight.format
        return isinstance(form, Int) and form.bits == self.bits and weight.granularity == PerChannel()

    def __call__(self, model: Any, frontend: Any, batch: Any) -> Applied:
        """Split, link by link, and keep it only where the output on `batch` stays what it was."""
        applied: Applied = frontend.split_channels(model, batch, self._split, gather=self.gather)
        return applied

    def _split(self, weight: Matrix, outputs: Channels) -> tuple[Channels, Matrix]:
        count = ceil(ceil(self.ratio * weight.shape[1]) / self.multiple) * self.multiple
        sources, halves = split(weight, count)
        if self.bits == 0:
            return sources, halves
        largest = np.zeros(int(outputs.max(initial=-1)) + 1)
        np.maximum.at(largest, outputs, np.abs(halves).max(axis=1, initial=0.0))
        step = 2.0 * largest[outputs] / (2**self.bits - 1)
        return split(weight, count, apart=step / 2.0)


def split(weight: Matrix, count: int, apart: Matrix | None = None) -> tuple[Channels, Matrix]:
    """Return which column of `weight` (out, in) each of the new ones is of, and them, (out, in + count).

    The column with the largest magnitude is halved `count` times, which may be one that has been halved; its halves
    are `apart` (out,) from each other.

    >>> sources, columns = split(np.asarray([[1.0, -8.0, 2.0]]), 2)
    >>> sources.tolist(), columns.tolist()
    ([0, 1, 2, 1, 1], [[1.0, -2.0, 2.0, -4.0, -2.0]])
    """
    sources, columns = list(range(weight.shape[1])), list(weight.T.astype(np.float64))
    largest = [float(np.abs(column).max(initial=0.0)) for column in weight.T]
    half = np.zeros(len(weight)) if apart is None else apart / 2.0
    for _ in range(count):
        place = int(np.argmax(largest))
        whole = columns[place]
        columns[place] = whole / 2.0 - half
        columns.append(whole / 2.0 + half)
        sources.append(sources[place])
        largest[place] /= 2.0
        largest.append(largest[place])
    return np.asarray(sources, dtype=np.int64), np.stack(columns, axis=1)


def together(outputs: Sequence[Channels]) -> Channels:
    """Return which output each row is of where the rows of several layers follow one another.

    >>> together([np.asarray([0, 0, 1]), np.asarray([0, 1])]).tolist()
    [0, 0, 1, 2, 3]
    """
    found, start = [], 0
    for own in outputs:
        found.append(own + start)
        start += int(own.max(initial=-1)) + 1
    return np.concatenate(found)


def grouped_sentence(names: Sequence[str]) -> str:
    """Return what the report says of links that begin or end at convolutions in groups.

    >>> grouped_sentence(["depthwise"])
    'outlier-splitting: depthwise left as it was: in a convolution in groups, as a depthwise one, channels are tied'
    """
    where = f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
    return (
        f"outlier-splitting: {where} left as it was: in a convolution in groups, as a depthwise one, channels are tied"
    )


def split_sentence(added: Mapping[str, int], names: str, *, copied: bool = False) -> str:
    """Return what the report says of links on which channels were `added`; `names` is what it calls them.

    >>> split_sentence({"up": 32}, "up", copied=True)
    'outlier-splitting: 32 channels were split on 1 link, copied before what reads them: up'
    """
    where = ", copied before what reads them" if copied else ""
    links = f"{len(added)} link{'' if len(added) == 1 else 's'}"
    return f"outlier-splitting: {sum(added.values())} channels were split on {links}{where}: {names}"
