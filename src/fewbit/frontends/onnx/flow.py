"""What flows where in the main graph of a model: each node's reads by name, those of the graphs inside it included.

Made once for a graph; everything that cuts or runs a graph looks up here instead of searching it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Flow:
    """A graph by names: of its values, and of the places of its nodes."""

    graph: ir.Graph
    nodes: tuple[ir.Node, ...]
    #: What each node reads, by its place: names of values of the graph.
    reads: tuple[tuple[str, ...], ...]
    #: The place of the node that makes a value.
    makers: dict[str, int]
    #: The place of each node, by identity.
    places: dict[int, int]

    @classmethod
    def of(cls, graph: ir.Graph) -> Flow:
        """Return the flow of `graph`, whose nodes are in the order in which they can run."""
        nodes = tuple(graph)
        reads = tuple(tuple(dict.fromkeys(outer_reads(node))) for node in nodes)
        makers = {value.name: place for place, node in enumerate(nodes) for value in node.outputs if value.name}
        return cls(graph, nodes, reads, makers, {id(node): place for place, node in enumerate(nodes)})

    def needed(self, names: Iterable[str], done: set[int]) -> list[int]:
        """Return the places of the nodes behind values `names` but those in `done`, in order; they are done then."""
        waiting, found = list(names), []
        while waiting:
            place = self.makers.get(waiting.pop())
            if place is not None and place not in done:
                done.add(place)
                found.append(place)
                waiting += self.reads[place]
        return sorted(found)


def outer_reads(node: ir.Node) -> Iterator[str]:
    """Yield the names of the values outside of `node` that it, or a graph inside of it, reads."""
    for value in node.inputs:
        if value is not None and value.name:
            yield value.name
    for inner in inner_graphs(node):
        own = {id(value) for value in (*inner.inputs, *inner.initializers.values())}
        own |= {id(value) for part in inner for value in part.outputs}
        inside = {value.name for part in inner for value in part.outputs} | {value.name for value in inner.inputs}
        inside |= set(inner.initializers)
        for part in inner:
            yield from (name for name in outer_reads(part) if name not in inside)
        yield from (value.name for value in inner.outputs if value.name and id(value) not in own)


def inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that are attributes of `node`: branches and bodies of loops."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
