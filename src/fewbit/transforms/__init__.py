"""Exact rewrites of the float model before rounding, one paper a file; a front end finds where they apply.

A transform is `(model, frontend, batch) -> Applied`, or a `LinkTransform`, which works block by block on what a front
end has proven to be linked. What either changed can be taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from fewbit.catalogue import parse_entry
from fewbit.known_output import KnownOutput
from fewbit.transforms.scope import LinkTransform, Rounded

#: Transforms by name.
TRANSFORMS = {
    "batchnorm": "fewbit.transforms.batchnorm:FoldBatchNorm",
    "awq": "fewbit.transforms.awq:Awq",
    "equalization": "fewbit.transforms.equalization:Equalization",
    "high-bias-absorption": "fewbit.transforms.high_bias_absorption:HighBiasAbsorption",
    "outlier-splitting": "fewbit.transforms.outlier_splitting:OutlierSplitting",
    "rotation": "fewbit.transforms.rotation:Rotation",
    "smoothquant": "fewbit.transforms.smoothquant:SmoothQuant",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a transform did to a model."""

    #: For the report: what changed, and what could not.
    sentences: tuple[str, ...]
    #: Takes it back.
    restore: Callable[[], None] = lambda: None
    #: What is known of the outputs of layers since, by name: those that a BatchNorm went into.
    outputs: Mapping[str, KnownOutput] = field(default_factory=dict)


class Transform(Protocol):
    """A rewrite that leaves the model's function as it is."""

    @property
    def name(self) -> str:
        """The word for it in recipes."""

    @property
    def removes_layers(self) -> bool:
        """Whether layers of the model are no longer there."""

    @property
    def widens_layers(self) -> bool:
        """Whether layers have other widths than the model's configuration says."""

    def problem(self, schemes: Mapping[str, Rounded]) -> str | None:
        """Return why it makes no sense for layers that are rounded so, with the remedy, or `None`."""

    def __call__(self, model: Any, frontend: Any, batch: Any) -> Applied:
        """Rewrite `model` in place; the data flow is that of a run on `batch`, `None` where there is no data."""


AnyTransform: TypeAlias = Transform | LinkTransform


def on_links(transforms: Sequence[AnyTransform]) -> list[LinkTransform]:
    """Return those that work block by block, before the layers of a block are rounded."""
    return [own for own in transforms if isinstance(own, LinkTransform)]


def on_models(transforms: Sequence[AnyTransform]) -> list[Transform]:
    """Return those that rewrite the model as a whole before anything else, with what one on links wants done first."""
    first: list[tuple[Transform, ...]] = [
        getattr(own, "first", ()) if isinstance(own, LinkTransform) else (own,) for own in transforms
    ]
    return [own for several in first for own in several]


def parse_transform(value: str | dict[str, Any] | AnyTransform) -> AnyTransform:
    """Return the transform for a name, a table with `name` and options, or a transform.

    >>> parse_transform({"name": "smoothquant", "alpha": 0.8})
    SmoothQuant(alpha=0.8)
    """
    kinds = (Callable, LinkTransform)
    made: AnyTransform = parse_entry(value, TRANSFORMS, what="transform", example="smoothquant", kinds=kinds)
    return made
