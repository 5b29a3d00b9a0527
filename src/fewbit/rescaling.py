"""Transforms on links at work, part by part before its layers are measured and rounded; taken back on failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fewbit.planning import Plan
from fewbit.transforms import on_links
from fewbit.transforms.scope import LinkTransform, Rescaled, Rounded, Scope


@dataclass(slots=True)
class Rescaling:
    """What the transforms of a plan do to the links of a model, and what they have done."""

    transforms: Sequence[LinkTransform]
    #: How each layer will be rounded.
    schemes: Mapping[str, Rounded]
    _undo: list[Callable[[], None]] = field(default_factory=list)
    _done: list[tuple[LinkTransform, Rescaled]] = field(default_factory=list)

    @classmethod
    def of(cls, made: Plan) -> Rescaling:
        """Return what the recipe of a plan asks for."""
        schemes = {own.layer.name: Rounded(own.scheme, own.input) for own in made.quantized}
        return cls(on_links(made.recipe.transforms), schemes)

    def __bool__(self) -> bool:
        return bool(self.transforms)

    def __call__(self, scope: Scope) -> None:
        """Rescale the links of a part of the model."""
        self._undo.append(scope.restorer())
        for transform in self.transforms:
            self._done += [(transform, rescaled) for rescaled in transform.rescaled(scope, self.schemes)]

    def outputs(self, layer: str, seen: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return statistics of the float outputs of a layer as they are now that its channels are divided."""
        for _, rescaled in self._done:
            if rescaled.link.producer == layer:
                seen = {name: own.divided(rescaled.factors) for name, own in seen.items()}
        return seen

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the report says: how many links of which kind under which setting; where there was none."""
        said = []
        for transform in self.transforms:
            own = [rescaled for by, rescaled in self._done if by is transform]
            settings = Counter(rescaled.setting for rescaled in own)
            if not own:
                said.append(f"{transform.name}: no link of the model was rescaled")
                continue
            listed = ", ".join(f"{setting} for {count}" for setting, count in settings.most_common(4))
            more = f" and {len(settings) - 4} others" if len(settings) > 4 else ""
            kinds = Counter(_ends(rescaled) for rescaled in own)
            links = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
            counted = "1 link was" if len(own) == 1 else f"{len(own)} links were"
            said.append(f"{transform.name}: {counted} rescaled, {listed}{more}: {links}")
        return tuple(said)

    @property
    def notes(self) -> Mapping[str, tuple[str, ...]]:
        """Return what to say of each layer whose inputs are divided."""
        notes: dict[str, tuple[str, ...]] = {}
        for transform, rescaled in self._done:
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
