"""Cut a graph into stages that run one after the other, each from what the ones before it left.

In sequential order a layer is in the stage after the last layer upstream of it: level = 1 + the highest level of the
measured layers that its input depends on. A stage is cut again where its inputs would fill more memory than allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fewbit.frontends.onnx.flow import Flow


@dataclass(frozen=True, slots=True)
class Stage:
    """Nodes to run, by place, and what is wanted of them."""

    places: tuple[int, ...]
    #: Names of the values to look at; some may have been made by earlier stages, or be inputs of the graph.
    watched: tuple[str, ...]
    #: Names of the values that its nodes read and do not make, constants left out.
    reads: tuple[str, ...]
    #: The same, and those that are looked at and not made here.
    needs: tuple[str, ...]
    #: Names of the values that it makes and later stages read or look at.
    leaves: tuple[str, ...]
    #: Names of values from earlier stages that no later stage needs.
    drops: tuple[str, ...]


def levels_of(flow: Flow, stops: Mapping[int, str]) -> dict[str, int]:
    """Return the level of each value in `stops`, which holds what the measured layers read, by the places of these."""
    level: dict[str, int] = {}
    found: dict[str, int] = {}
    for place, reads in enumerate(flow.reads):
        own = max((level.get(name, 0) for name in reads), default=0)
        if place in stops:
            data = stops[place]
            found[data] = level.get(data, 0)
            own = max(own, found[data] + 1)
        for value in flow.nodes[place].outputs:
            if value.name:
                level[value.name] = own
    return found


def stages_of(flow: Flow, groups: Sequence[Sequence[str]]) -> list[Stage]:
    """Return a stage for each of `groups`, the values to look at in it; no node is in two."""
    done: set[int] = set()
    parts = [flow.needed(list(group), done) for group in groups]
    constants = set(flow.graph.initializers)
    needs = []
    for places, group in zip(parts, groups, strict=True):
        made = {value.name for place in places for value in flow.nodes[place].outputs}
        read = {name: None for place in places for name in flow.reads[place]} | dict.fromkeys(group)
        needs.append(tuple(name for name in read if name not in made and name not in constants))
    last = {name: number for number, names in enumerate(needs) for name in names}
    return [
        _stage(flow, number, places, tuple(group), needs[number], last)
        for number, (places, group) in enumerate(zip(parts, groups, strict=True))
    ]


def _stage(
    flow: Flow, number: int, places: list[int], watched: tuple[str, ...], needs: tuple[str, ...], last: dict[str, int]
) -> Stage:
    made = {value.name or "": None for place in places for value in flow.nodes[place].outputs}
    read = {name for place in places for name in flow.reads[place]}
    return Stage(
        places=tuple(places),
        watched=watched,
        reads=tuple(name for name in needs if name in read),
        needs=needs,
        leaves=tuple(name for name in made if last.get(name, -1) > number),
        drops=tuple(name for name in needs if last[name] == number),
    )
