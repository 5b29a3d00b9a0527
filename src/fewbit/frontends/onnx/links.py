"""The links of a graph: candidates from its data flow, each accepted by an exact fold of random factors.

With powers of two f: W_producer / f and W_consumers diag(f) must leave what the consumers put out as it was, and with
the factors of the columns moved on by one channel they must not. Only the nodes from the one to the others run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.frontends.onnx.batches import Numbers
from fewbit.frontends.onnx.channel_path import Path
from fewbit.frontends.onnx.channel_scaling import Changes, Producer, exchange, multiplied, producer_of
from fewbit.frontends.onnx.simulation import Simulation
from fewbit.frontends.onnx.walk import Walk
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import OnnxModel
from fewbit.transforms.exact_fold import change_of, is_exact
from fewbit.transforms.link import Factors, Link, storable


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """A link of a graph, and how numbers move along it."""

    link: Link
    producer: Producer
    consumers: tuple[GraphLayer, ...]

    def storable(self, factors: Factors) -> Factors:
        """Return factors close by under which a gain becomes a number of 8 bits."""
        gain = self.producer.gain()
        return factors if gain is None else storable(gain, factors)

    def fold(self, factors: Factors, columns: Factors | None = None) -> Changes:
        """Divide the producer's channels by `factors`, multiply the columns that read them; return what was there.

        `columns` are others for the columns.
        """
        spread = self.link.spread(factors if columns is None else columns)
        changes = self.producer.divided(factors)
        return exchange([*changes, *(change for own in self.consumers for change in multiplied(own, spread))])


def find_folds(model: OnnxModel, batches: Sequence[Any]) -> tuple[Fold, ...]:
    """Return the links of the float graph, in its order, as the first of `batches` shows them."""
    return tuple(fold for fold, _ in walk_folds(model, batches))


def walk_folds(
    model: OnnxModel, batches: Sequence[Any], wanted: Callable[[Producer], bool] = lambda _: True
) -> Iterator[tuple[Fold, LocalRun]]:
    """Yield the links from the producers that are `wanted`, each with what runs it on the first of `batches`."""
    simulation = Simulation(model, {})
    paths = [path for path in _candidates(model) if wanted(path.producer)]
    groups = [list(dict.fromkeys((*path.needs(), path.producer.result.name or ""))) for path in paths]
    with Walk(simulation, groups, list(batches[:1])) as walk:
        for number, path in enumerate(paths):
            values: dict[str, Numbers] = {}
            walk.run(number, values.__setitem__)
            local = LocalRun(path, simulation, values)
            fold = _proven(local)
            if fold is not None:
                yield fold, local


@dataclass(frozen=True, slots=True)
class LocalRun:
    """The nodes from a producer to its readers, which run alone on what the rest of the graph gives them."""

    path: Path
    simulation: Simulation
    #: By name.
    values: Mapping[str, Numbers]

    def outputs(self) -> dict[str, Numbers]:
        """Return what the readers put out, with the constants that they have now."""
        path = self.path
        nodes = (*path.producer.nodes, *path.nodes, *(own.node for own in path.consumers))
        places = sorted(self.simulation.flow.places[id(node)] for node in nodes)
        given = {name: self.values[name] for name in path.needs()}
        return self.simulation.session(places, given, [own.output.name or "" for own in path.consumers]).run(given)


def _candidates(model: OnnxModel) -> Iterator[Path]:
    layers = {id(own.node): own for own in model.found.values()}
    for node in model.graph.graph:
        producer = producer_of(node, layers) if node.domain in ("", "ai.onnx") else None
        path = Path.behind(producer, layers) if producer is not None else None
        if path is not None:
            yield path


def _proven(local: LocalRun) -> Fold | None:
    """Return the fold along a path, if it is exact."""
    path, producer = local.path, local.path.producer
    shape = local.values[producer.result.name or ""].shape
    outputs = shape[producer.axis]
    sizes = {_size(producer, place) for place in range(len(producer.vectors))}
    if sizes - {outputs}:  # a vector that is spread over one channel, or a number for all
        return None
    channels = path.channels(local.simulation, local.values)
    if channels is None:
        return None
    link = Link(producer.name, tuple(own.layer.name for own in path.consumers), channels, outputs)
    fold = Fold(link, producer, path.consumers)
    return fold if _is_exact(fold, local) else None


def _size(producer: Producer, place: int) -> int:
    node, index = producer.vectors[place]
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.size


def _is_exact(fold: Fold, local: LocalRun) -> bool:
    expected = local.outputs()

    def change(rows: Factors, columns: Factors) -> float:
        undo = fold.fold(rows, columns)
        try:
            return max(change_of(expected[name], own) for name, own in local.outputs().items())
        finally:
            exchange(undo)

    return is_exact(fold.link, change, float(np.finfo(next(iter(expected.values())).dtype).eps))
