"""Transforms of a whole model at work, before its layers are measured; taken back on failure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fewbit.interfaces import Frontend, target_of
from fewbit.known_output import KnownOutput
from fewbit.recipe import Recipe
from fewbit.transforms import Applied, Transform, on_models


@dataclass(slots=True)
class Transformed:
    """What transforms have done to a model."""

    #: What the report says of it.
    sentences: tuple[str, ...] = ()
    #: What is known of the outputs of layers since.
    outputs: dict[str, KnownOutput] = field(default_factory=dict)


@contextmanager
def transformed(
    model: Any, recipe: Recipe, frontend: Frontend, batches: Sequence[Any], to: str | None
) -> Iterator[Transformed]:
    """Apply the transforms of a recipe, and take them back if the block fails; yields what they have done."""
    keeps = to is not None and target_of(to).keeps_layers
    said: list[str] = []
    outputs: dict[str, KnownOutput] = {}
    done: list[Applied] = []
    try:
        for own in on_models(recipe.transforms):
            if not (keeps and own.removes_layers):
                done.append(own(model, frontend, batches[0] if batches else None))
                said += done[-1].sentences
                outputs |= done[-1].outputs
            elif _has_effect(own, model, frontend):
                said.append(f"transform {own.name} is left out: {to} files keep every layer of the model")
        yield Transformed(tuple(said), outputs)
    except BaseException:
        for applied in reversed(done):
            applied.restore()
        raise


def _has_effect(transform: Transform, model: Any, frontend: Frontend) -> bool:
    """Whether there is something in a model for a transform, which it can tell without data."""
    applied = transform(model, frontend, None)
    applied.restore()
    return bool(applied.sentences)
