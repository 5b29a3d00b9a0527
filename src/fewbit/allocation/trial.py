"""A recipe carried out on a model that stays float: solved as `quantize` does, measured as a whole and by parts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from fewbit.allocation.reference import Reference
from fewbit.allocation.subject import Subject
from fewbit.attention import installed
from fewbit.interfaces import Frontend, Progress, Source
from fewbit.model_plan import checked, model_plan
from fewbit.planning import Plan
from fewbit.recipe import Recipe
from fewbit.solved import Data, Solved
from fewbit.solving import needs_data, solve


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """What recipes are tried on."""

    source: Source
    model: Any
    frontend: Frontend
    target: str | None
    dtype: str
    data: Data
    #: What the whole model is measured on.
    evaluated: Sequence[Any]
    progress: Progress

    def plan(self, recipe: Recipe) -> Plan:
        """Return the plan of a recipe; raises `PlanError` for one that cannot be carried out."""
        made = model_plan(self.source, self.model, recipe, to=self.target, dtype=self.dtype, batch=self.data.example)
        made = checked(made, self.frontend, self.model, self.data.example)
        made.require_sound()
        return made

    def trial(self, recipe: Recipe) -> Trial:
        """Return the recipe solved; the float forms are installed."""
        made = self.plan(recipe)
        data = self.data if needs_data(made) else Data(example=self.data.example)
        return Trial(self, made, solve(self.model, made, self.frontend, data, self.progress))


@dataclass(frozen=True, slots=True)
class Trial:
    """The solved layers of a recipe."""

    place: Workplace
    plan: Plan
    solved: dict[str, Solved]

    def divergence(self) -> float:
        """Return how far the whole model is from the float one on what it is measured on."""
        place = self.place
        apart = signal = 0.0
        for batch in place.progress.track(place.evaluated, "measure"):
            reference = Reference.of([batch], [place.frontend.run(place.model, batch)])
            with self._installed(()):
                output = place.frontend.run(place.model, batch)
            own = reference.sums([output])
            apart, signal = apart + own[0], signal + own[1]
        return apart / signal if signal else 0.0

    def marginals(self, subject: Subject, groups: dict[str, list[str]]) -> dict[str, float]:
        """Return what each group of layers adds to the divergence of the model in which all others are quantized."""
        names = list(self.solved)
        with self._installed(()):
            whole = subject.reference.divergence(subject.runs.outputs(names))
        found = {}
        for group in subject.progress.track(list(groups), "interactions"):
            with self._installed(groups[group]):
                found[group] = whole - subject.reference.divergence(subject.runs.outputs(names))
        return found

    def _installed(self, but: Collection[str]) -> AbstractContextManager[None]:
        """Put the quantized forms in, of the layers that are not among `but`."""
        return installed([done.replacement for name, done in self.solved.items() if name not in but])
