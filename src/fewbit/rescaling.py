"""Transforms on links at work, part by part before its layers are measured and rounded; taken back on failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewbit.known_output import KnownOutput
from fewbit.planning import Plan
from fewbit.problems import several
from fewbit.statistics.mean import Mean
from fewbit.transforms import on_links
from fewbit.transforms.scope import LinkTransform, Rescaled, Rounded, Scope


@dataclass(slots=True)
class Rescaling:
    """What the transforms of a plan do to the links of a model, and what they have done."""

    transforms: Sequence[LinkTransform]
    #: How each layer will be rounded.
    schemes: Mapping[str, Rounded]
    #: What BatchNorms tell of the outputs of layers, as these are now.
    known: dict[str, KnownOutput] = field(default_factory=dict)
    #: Whether it is at its end, ahead of the layers.
    finished: bool = False
    _undo: list[Callable[[], None]] = field(default_factory=list)
    _done: list[tuple[LinkTransform, Rescaled]] = field(default_factory=list)

    @classmethod
    def of(cls, made: Plan) -> Rescaling:
        """Return what the recipe of a plan asks for."""
        schemes = {own.layer.name: Rounded(own.scheme, own.input) for own in made.quantized}
        return cls(on_links(made.recipe.transforms), schemes)

    def __bool__(self) -> bool:
        """Whether there is something left to do."""
        return bool(self.transforms) and not self.finished

    def __call__(self, scope: Scope) -> None:
        """Rescale the links of a part of the model."""
        self._undo.append(scope.restorer())
        scope.known = self.known_now()
        for transform in self.transforms:
            self._done += [(transform, rescaled) for rescaled in transform.rescaled(scope, self.schemes)]
            scope.known = self.known_now()

    def known_now(self) -> dict[str, KnownOutput]:
        """Return what BatchNorms tell of outputs whose channels were divided and shifted since."""
        known = dict(self.known)
        for _, rescaled in self._done:
            name = rescaled.link.producer
            if name in known:
                known[name] = known[name].divided(rescaled.factors).less(rescaled.taken_off)
        return known

    def outputs(self, layer: str, seen: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return statistics of the float outputs of a layer as they are now that its channels are divided."""
        for _, rescaled in self._done:
            if rescaled.link.producer == layer:
                seen = {name: own.divided(rescaled.factors).less(rescaled.taken_off) for name, own in seen.items()}
        return seen

    def inputs(self, layer: str, seen: Mean) -> Mean:
        """Return the means of the rows of a layer's input as they are now, from those of the model as it was."""
        for _, rescaled in self._done:
            link = rescaled.link
            if layer in link.consumers:
                times = seen.width // len(link.channels)
                factors, shift = link.spread(rescaled.factors), link.spread(rescaled.taken_off, otherwise=0.0)
                seen = seen.divided(np.repeat(factors, times)).less(np.repeat(shift, times))
        return seen

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the report says: how many links of which kind under which setting; where there was none."""
        return tuple(text for transform in self.transforms for text in self._said(transform))

    def _said(self, transform: LinkTransform) -> list[str]:
        """Return what the report says of a transform: what it did, and what it left as it was."""
        every = [rescaled for by, rescaled in self._done if by is transform]
        own = [rescaled for rescaled in every if not rescaled.left]
        alike: dict[str, list[str]] = {}
        for rescaled in every:
            if rescaled.left:
                alike.setdefault(rescaled.left, []).append(rescaled.link.producer)
        left = [f"{transform.name}: {several(names)} left as it was: {why}" for why, names in alike.items()]
        if not own:
            return [f"{transform.name}: no link of the model was {transform.verb}", *left]
        settings = Counter(rescaled.setting for rescaled in own)
        listed = ", ".join(f"{setting} for {count}" for setting, count in settings.most_common(4))
        more = f" and {len(settings) - 4} others" if len(settings) > 4 else ""
        kinds = Counter(_ends(rescaled) for rescaled in own)
        links = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        counted = "1 link was" if len(own) == 1 else f"{len(own)} links were"
        change = max((rescaled.change for rescaled in own if rescaled.change is not None), default=None)
        which = "this" if len(own) == 1 else "each"
        effect = "" if change is None else f"; {which} changes the output by up to {100 * change:.2g} % of its size"
        return [f"{transform.name}: {counted} {transform.verb}, {listed}{more}: {links}{effect}", *left]

    @property
    def notes(self) -> Mapping[str, tuple[str, ...]]:
        """Return what to say of each layer whose inputs are divided."""
        notes: dict[str, tuple[str, ...]] = {}
        for transform, rescaled in self._done:
            if rescaled.left:
                continue
            text = f"{transform.name} {rescaled.setting}, with {rescaled.link.producer}"
            for name in rescaled.link.consumers:
                notes[name] = (*notes.get(name, ()), text)
        return notes

    def __enter__(self) -> Rescaling:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        for undo in reversed(self._undo) if failed else ():
            undo()


def _ends(rescaled: Rescaled) -> str:
    """Return the link by the last parts of its names, which repeated blocks have in common."""
    *_, producer = rescaled.link.producer.split(".")
    readers = (name.split(".")[-1] for name in rescaled.link.consumers)
    return f"{producer} -> {' '.join(readers)}"
