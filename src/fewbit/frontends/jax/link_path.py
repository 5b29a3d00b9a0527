"""The operations between a parameter whose rows put out channels and the products that alone read them.

Candidates by data flow: what may hand a factor of a channel on does so until a product with a weight takes it up; a
vector that is added is divided too. Whether the factor arrives is for a proof to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from fewbit.frontends.jax.movement import moved, sliced_axis, slices_stack
from fewbit.frontends.jax.product import Product, product_of
from fewbit.frontends.jax.unrolled import Node, Unrolled
from fewbit.frontends.jax.view import Layout, View, joined

#: Operations that may hand a factor of a channel on; those that compare look at signs, which a factor leaves.
_HAND_ON = frozenset(
    {
        "abs", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p", "cumsum", "dot_general",
        "ge", "gt", "le", "lt", "max", "min", "mul", "name", "neg", "reduce_max", "reduce_sum", "reshape", "rev",
        "select_n", "sharding_constraint", "sign", "slice", "squeeze", "stop_gradient", "transpose",
    }
)  # fmt: skip
#: Those that do of their first operand alone.
_FIRST = ("div", "dynamic_slice", "gather", "pad")
#: Operations that repeat or move a vector, which is still there for what reads the result.
_SPREADS = ("broadcast_in_dim", "reshape", "transpose", "squeeze", "convert_element_type", "copy", "copy_p")


@dataclass(frozen=True, slots=True)
class Origin:
    """A value that is made of one parameter, or of one index of its stack."""

    parameter: int
    view: View
    #: Indices that were taken, as many as `view.taken`.
    index: tuple[int, ...]
    #: The value from which on nothing was taken, and how it lies.
    root: int
    lies: View
    #: Whether its numbers are moved and scaled alone; else they are repeated.
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """A matrix (out, in) of a parameter, of a vector a column (channels, 1)."""

    parameter: int
    layout: Layout
    index: tuple[int, ...]
    root: int
    lies: View


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A product with a weight that reads channels."""

    node: Node
    product: Product
    #: The value that it reads.
    data: int
    weight: Part


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """What lies between parts whose rows are divided and the readers whose columns are multiplied."""

    #: The first is the weight or gain that puts out the channels, others are added to these.
    parts: tuple[Part, ...]
    #: The product of the first part, where it is a weight; `None`: it is a gain.
    made: Product | None
    readers: tuple[Reader, ...]
    #: Values that everything from the parts to the readers takes from elsewhere.
    needs: tuple[int, ...]


@dataclass(slots=True)
class Paths:
    """The paths of a function."""

    graph: Unrolled
    #: By value.
    origins: dict[int, Origin] = field(default_factory=dict)
    #: Where parameters are read, by parameter: the index, the place of the node (-1: the function returns it).
    _ends: dict[int, list[tuple[tuple[int, ...], int]]] = field(default_factory=dict)
    #: Places of the nodes that move, scale or repeat what began at a root.
    _moves: dict[int, set[int]] = field(default_factory=dict)
    #: Places of nodes by what they read, with the place of the operand.
    _readers: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Unrolled, shapes: Sequence[tuple[int, ...]]) -> Paths:
        """Return the paths of `graph`, whose first inputs are parameters of these shapes."""
        own = cls(graph)
        for parameter, shape in enumerate(shapes):
            if prod(shape) > 1:
                value, view = graph.inputs[parameter], View.of(shape)
                own.origins[value] = Origin(parameter, view, (), value, view)
        for place, node in enumerate(graph.nodes):
            for position, value in enumerate(node.inputs):
                own._readers.setdefault(value, []).append((place, position))
            own._pass(place, node)
        for value in graph.outputs:
            if value in own.origins:
                own._end(own.origins[value], -1)
        return own

    def _pass(self, place: int, node: Node) -> None:
        """Follow a parameter through a node, or note that it is read there."""
        held = [position for position, value in enumerate(node.inputs) if value in self.origins]
        if len(held) == 1:
            before = self.origins[node.inputs[held[0]]]
            found = _passed(node, held[0], before, self.graph.constants)
            if found is not None:
                self.origins[node.outputs[0]] = found
                if found.root == before.root:
                    self._moves.setdefault(found.root, set()).add(place)
                return
        for position in held:
            self._end(self.origins[node.inputs[position]], place)

    def _end(self, origin: Origin, place: int) -> None:
        self._ends.setdefault(origin.parameter, []).append((origin.index, place))

    def _only_reader(self, origin: Origin) -> int | None:
        """Return the place of the node that alone reads a matrix of a parameter, or `None`."""
        ends = self._ends.get(origin.parameter, ())
        found = [
            place for index, place in ends if all(own == other for own, other in zip(index, origin.index, strict=False))
        ]
        return found[0] if len(found) == 1 and found[0] >= 0 else None

    def __iter__(self) -> Iterator[Path]:
        """Yield the paths in the order of the function."""
        roots = {origin.root: self.origins[origin.root] for origin in self.origins.values()}
        starts = {place: root for root, own in roots.items() if (place := self._only_reader(own)) is not None}
        for place in sorted(starts):
            path = self._behind(place, starts[place])
            if path is not None:
                yield path

    def _behind(self, start: int, root: int) -> Path | None:
        """Return the path from what begins at `root`, which the node at `start` alone reads."""
        node = self.graph.nodes[start]
        position = next(
            (at for at, own in enumerate(node.inputs) if own in self.origins and self.origins[own].root == root), None
        )
        if position is None:
            return None
        made, origin = self._weight(node, position), self.origins[node.inputs[position]]
        if made is None and node.name != "mul":
            return None
        parts = [_part(origin, made.layout) if made else _vector(origin)]
        channels = parts[0].layout.matrix[0]
        nodes, readers, waiting = {start}, [], [*node.outputs]
        while waiting:
            value = waiting.pop()
            if value in self.graph.outputs:
                return None
            for place, at in self._readers.get(value, ()):
                node = self.graph.nodes[place]
                if place in nodes:
                    continue
                reader, added = self._read(place, at), self._added(place, at, channels)
                if reader is not None:
                    readers.append(reader)
                elif added is not None or self._hands_on(node, at):
                    parts += [added] if added is not None else []
                    nodes.add(place)
                    waiting += node.outputs
                else:
                    return None
        found = Path(tuple(parts), made, tuple(readers), ())
        return replace(found, needs=self._needs(found, nodes)) if readers and channels > 1 else None

    def _weight(self, node: Node, position: int) -> Product | None:
        """Return the product of a node with the operand at `position` as the one matrix that it multiplies by."""
        origin = self.origins.get(node.inputs[position])
        if (
            node.name != "dot_general"
            or origin is None
            or not origin.exact
            or node.inputs[1 - position] in self.origins
        ):
            return None
        product = product_of(node.equation, position, origin.view)
        return product if product is not None and not product.stacked else None

    def _read(self, place: int, position: int) -> Reader | None:
        """Return what reads channels with a weight of its own, or `None`."""
        node = self.graph.nodes[place]
        if node.name != "dot_general":
            return None
        product, origin = self._weight(node, 1 - position), self.origins.get(node.inputs[1 - position])
        if product is None or origin is None or self._only_reader(origin) != place:
            return None
        return Reader(node, product, node.inputs[position], _part(origin, product.layout))

    def _added(self, place: int, position: int, channels: int) -> Part | None:
        """Return the vector that is added to the channels there, or `None`."""
        node = self.graph.nodes[place]
        if not (node.name in ("add", "add_any") or (node.name == "sub" and position == 0)):
            return None
        origin = self.origins.get(node.inputs[1 - position])
        alone = origin is not None and self._only_reader(origin) == place and prod(origin.view.shape) == channels
        return _vector(origin) if origin is not None and alone else None

    def _hands_on(self, node: Node, position: int) -> bool:
        """Whether a node may hand a factor on; a product with a weight that is no reader does not."""
        weighs = node.name == "dot_general" and node.inputs[1 - position] in self.origins
        own = node.equation is None or node.name in _HAND_ON or (node.name in _FIRST and position == 0)
        return own and not weighs

    def _needs(self, path: Path, nodes: set[int]) -> tuple[int, ...]:
        graph, roots = self.graph, {own.root for own in (*path.parts, *(reader.weight for reader in path.readers))}
        inside = nodes.union(*(self._moves.get(root, set()) for root in roots))
        waiting, found = [own for reader in path.readers for own in reader.node.inputs], dict[int, None]()
        while waiting:
            value = waiting.pop()
            place = graph.makers.get(value)
            if value in roots or value in graph.constants:
                continue
            if place in inside:
                waiting += graph.nodes[place].inputs
            else:
                found[value] = None
        return tuple(found)


def _part(origin: Origin, layout: Layout) -> Part:
    return Part(origin.parameter, layout, origin.index, origin.root, origin.lies)


def _vector(origin: Origin) -> Part:
    run = joined([atom for axis in origin.view.axes for atom in axis])
    return _part(origin, Layout(origin.view.taken, run, ()))


def _passed(node: Node, position: int, origin: Origin, constants: Mapping[int, Any]) -> Origin | None:
    """Return what a node that only moves, scales or repeats a parameter makes of it; `None`: it does more."""
    value = node.outputs[0]
    if node.equation is None or slices_stack(node.equation):
        index = _index(node, constants) if origin.exact and position == 0 else None
        if index is None:
            return None
        axis, at = index
        view = origin.view.without(axis) if node.equation is None else origin.view.narrowed(axis)
        return Origin(origin.parameter, view, (*origin.index, at), value, view)
    view_now = moved(node.equation, position, origin.view) if origin.exact else None
    if view_now is not None:
        return replace(origin, view=view_now)
    return replace(origin, exact=False) if node.name in _SPREADS and position == 0 else None


def _index(node: Node, constants: Mapping[int, Any]) -> tuple[int, int] | None:
    """Return the axis and the index of what a node takes of a stack, where it is known which."""
    if node.equation is None:
        return None if node.step is None else (0, node.step)
    axis = sliced_axis(node.equation)
    if axis is None:
        return None
    if node.name == "slice":
        return axis, int(node.equation.params["start_indices"][axis])
    at = constants.get(node.inputs[1 + axis])
    return None if at is None else (axis, int(at))
