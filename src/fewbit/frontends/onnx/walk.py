"""Run batches through a model stage by stage, and show the values of each stage one after the other.

A stage is built when its turn comes: on what is installed then. No node runs twice for a batch, so the time grows with
the nodes; what later stages need is carried, so the memory does not grow with the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fewbit.errors import CalibrationError
from fewbit.frontends.onnx.alike import Alike
from fewbit.frontends.onnx.batches import Numbers, feeds_of
from fewbit.frontends.onnx.session import Session
from fewbit.frontends.onnx.simulation import Simulation
from fewbit.frontends.onnx.stages import Stage, stages_of
from fewbit.samples.carried import Carried

#: Bytes of what is carried that stay in memory: what a few batches leave, however many there are.
_IN_MEMORY = 1 << 22


class Walk(AbstractContextManager["Walk"]):
    """The way of some batches through a model; it begins at the first stage."""

    def __init__(self, simulation: Simulation, groups: Sequence[Sequence[str]], batches: Sequence[Any]) -> None:
        """Prepare a stage for each of `groups`, which name the values to look at."""
        self._simulation, self._batches = simulation, batches
        self._stages = stages_of(simulation.flow, groups)
        self._carried = Carried(_IN_MEMORY)

    def __exit__(self, *_: object) -> None:
        self._carried.close()

    def run(self, number: int, take: Callable[[str, Numbers], None]) -> None:
        """Run stage `number`, the next one, for every batch; `take` is given each value by name."""
        stage = self._stages[number]
        session: Session | Alike | None = None
        for place in range(len(self._batches)):
            known = self._feeds(stage, place)

            def value(name: str, known: dict[str, Numbers] = known, place: int = place) -> Numbers:
                return known[name] if name in known else self._carried.get(place, name)

            given = {name: value(name) for name in stage.reads}
            made: dict[str, Numbers] = {}
            if stage.places:
                session = session or self._session(stage, given)
                made = session.run(given)
            for name in stage.leaves:
                self._carried.put(place, name, _array(name, made[name]))
            for name in stage.watched:
                take(name, _array(name, made.pop(name, None) if name in made else value(name)))
            self._carried.drop(place, stage.drops)

    def _feeds(self, stage: Stage, place: int) -> dict[str, Numbers]:
        """Return what a batch feeds the graph with; it is not read, perhaps decoded, where the stage needs none."""
        graph = self._simulation.model.graph.graph
        inputs = {value.name for value in graph.inputs}
        return feeds_of(graph, self._batches[place]) if not inputs.isdisjoint(stage.needs) else {}

    def _session(self, stage: Stage, given: dict[str, Numbers]) -> Session | Alike:
        made = {value.name for place in stage.places for value in self._simulation.flow.nodes[place].outputs}
        outputs = dict.fromkeys((*stage.leaves, *(name for name in stage.watched if name in made)))
        return self._simulation.session(stage.places, given, list(outputs))


def _array(name: str, value: Any) -> Numbers:
    if not isinstance(value, np.ndarray):
        raise CalibrationError(
            f"value {name!r} is a {type(value).__name__}, not an array, and stands between layers that are measured; "
            "keep those behind it"
        )
    return value
