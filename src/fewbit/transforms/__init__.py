"""Exact rewrites of the float model before rounding, one paper a file; a front end finds where they apply.

A transform is `(model, frontend, batch) -> Applied`; what it changed can be taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fewbit.catalogue import lookup
from fewbit.errors import NotYetError, RecipeError

#: Transforms by name.
TRANSFORMS = {
    "batchnorm": "fewbit.transforms.batchnorm:FoldBatchNorm",
}
#: Transforms of the design that this version does not have.
LATER = ("awq", "equalization", "rotation", "smoothquant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a transform did to a model."""

    #: For the report: what changed, and what could not.
    sentences: tuple[str, ...]
    #: Takes it back.
    restore: Callable[[], None] = lambda: None


class Transform(Protocol):
    """A rewrite that leaves the model's function as it is."""

    @property
    def name(self) -> str:
        """The word for it in recipes."""

    def __call__(self, model: Any, frontend: Any, batch: Any) -> Applied:
        """Rewrite `model` in place; the data flow is that of a run on `batch`, `None` where there is no data."""


def parse_transform(value: str | Transform) -> Transform:
    """Return the transform called `value`, or `value` itself.

    >>> parse_transform("batchnorm").name
    'batchnorm'
    """
    if not isinstance(value, str):
        if not callable(value) or isinstance(value, type):
            raise RecipeError(f'transforms hold {value!r:.80}, which is no transform; write for example "batchnorm"')
        return value
    if value in LATER:
        raise NotYetError(f"transform {value!r} is not in this version; use one of: {', '.join(TRANSFORMS)}")
    found: Transform = lookup(TRANSFORMS, value, what="transform")()
    return found
