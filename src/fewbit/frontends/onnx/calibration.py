"""Run calibration data through a graph and gather statistics of what its layers are given.

In sequential order each layer is measured behind the quantized ones upstream of it, layers side by side at once; else
on the model as it was. Layers that read the same value share one statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fewbit.catalogue import lookup
from fewbit.errors import CalibrationError, FewbitError
from fewbit.frontends.onnx.batches import Numbers, feeds_of
from fewbit.frontends.onnx.patches import Window
from fewbit.frontends.onnx.simulation import Simulation
from fewbit.frontends.onnx.sizes import sizes_of, within_bounds
from fewbit.frontends.onnx.stages import levels_of
from fewbit.frontends.onnx.walk import Walk
from fewbit.interfaces import CalibratedPart, Layer
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import OnnxModel
from fewbit.statistics import STATISTICS

#: Bytes of values, with those of their second moments, that one run of a stage shows, and values at most: onnxruntime
#: plans in time quadratic in them.
ALIVE, AT_ONCE = 1 << 26, 16


class CalibrationRun:
    """The stages of a calibration, a part each."""

    def __init__(
        self,
        model: OnnxModel,
        layers: Sequence[Layer],
        wanted: Mapping[str, Sequence[str]],
        batches: Sequence[Any],
        *,
        sequential: bool,
    ) -> None:
        """Prepare; `wanted` names the statistics of each layer that is to be quantized."""
        self._batches = batches
        self._simulation = Simulation(model, None if sequential else dict(model.layers))
        self._wanted = {layer.name: _possible(layer, wanted[layer.name]) for layer in layers if layer.name in wanted}
        self._rest = tuple(layer for layer in layers if layer.name in wanted and not self._wanted[layer.name])
        #: The layers that read each value, in the order of the graph.
        self._readers: dict[str, list[GraphLayer]] = {}
        for own in model.found.values():
            if self._wanted.get(own.layer.name):
                self._readers.setdefault(own.data.name or "", []).append(own)
        self._groups = self._grouped(sequential=sequential)

    @property
    def gradients(self) -> tuple[None, ...]:
        """Nothing: onnxruntime computes none."""
        return ()

    def __len__(self) -> int:
        return len(self._groups) + bool(self._rest)

    def __iter__(self) -> Iterator[Iterator[CalibratedPart]]:
        """Yield for each stage its part; quantize and install the layers of a part before asking for the next."""
        if self._rest:
            yield iter([CalibratedPart(self._rest, {})])
        with Walk(self._simulation, self._groups, self._batches) as walk:
            for number, names in enumerate(self._groups):
                seen = {name: _Seen(self._readers[name], self._wanted) for name in names}
                walk.run(number, lambda name, numbers, seen=seen: seen[name].update(numbers))  # type: ignore[misc]
                layers = tuple(own.layer for name in names for own in self._readers[name])
                found = {name: own for value in seen.values() for name, own in value.statistics().items()}
                yield iter([CalibratedPart(layers, found)])

    def _grouped(self, *, sequential: bool) -> list[list[str]]:
        """Return the values to look at together, in the order in which they are there."""
        flow = self._simulation.flow
        stops = {flow.places[id(own.node)]: name for name, readers in self._readers.items() for own in readers}
        levels = levels_of(flow, stops) if sequential else {}
        by_level: dict[int, list[str]] = {}
        for name in dict.fromkeys(stops[place] for place in sorted(stops)):
            by_level.setdefault(levels.get(name, 0), []).append(name)
        sizes: dict[str, int] = {}
        if any(len(names) > 1 for names in by_level.values()):
            sizes = self._sizes()
        return [group for level in sorted(by_level) for group in within_bounds(by_level[level], sizes, ALIVE, AT_ONCE)]

    def _sizes(self) -> dict[str, int]:
        """Return the bytes of each value in the first batch, with those of its statistics."""
        feeds = feeds_of(self._simulation.model.graph.graph, self._batches[0])
        sizes = sizes_of(self._simulation.model.graph, self._simulation.flow, feeds)
        for name, readers in self._readers.items():
            moments = any(_class(own).of_rows for reader in readers for own in self._wanted[reader.layer.name])
            if name in sizes and moments:
                sizes[name] += 4 * readers[0].layer.groups * readers[0].layer.shape[1] ** 2
        return sizes


class _Seen:
    """The statistics of one value for the layers that read it."""

    def __init__(self, readers: Sequence[GraphLayer], wanted: Mapping[str, Sequence[str]]) -> None:
        self._readers, self._wanted = readers, wanted
        #: By name, and by the window of a convolution where patches are taken.
        self._kept: dict[tuple[str, Window | None], Any] = {}
        self._first: dict[tuple[str, Window | None], GraphLayer] = {}

    def update(self, numbers: Numbers) -> None:
        """Take in what a batch has at this value."""
        for own in self._readers:
            _require_width(own, numbers)
            for name in self._wanted[own.layer.name]:
                self._first.setdefault(_key(own, name), own)
        for (name, window), own in self._first.items():
            statistic = self._kept.get((name, window))
            if statistic is None:
                statistic = self._kept[name, window] = _statistic(own, name, numbers)
            try:
                for rows in _rows(own, window, numbers):
                    statistic.update(rows)
            except FewbitError as error:
                raise type(error)(f"{own.layer.name}: {name}: {error}") from error

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Return the statistics by layer and name."""
        return {
            own.layer.name: {name: self._kept[_key(own, name)] for name in self._wanted[own.layer.name]}
            for own in self._readers
        }


def gather(
    model: OnnxModel, wanted: Mapping[str, str], batches: Sequence[Any], rows: Callable[[str, Numbers], Numbers]
) -> dict[str, Any]:
    """Return the statistic that is `wanted` of each value of the model, as it is now; `rows` puts channels last."""
    simulation = Simulation(model)
    known = {value.name for value in model.graph.graph.inputs} | simulation.flow.makers.keys()
    for name in wanted:
        if name not in known:
            raise CalibrationError(f"there is no value {name!r} in the graph of {model.path}")
    names = sorted(wanted, key=lambda name: simulation.flow.makers.get(name, -1))
    feeds = feeds_of(model.graph.graph, batches[0])
    sizes = sizes_of(model.graph, simulation.flow, feeds) if len(names) > 1 else {}
    groups = within_bounds(names, sizes, ALIVE, AT_ONCE)
    found: dict[str, Any] = {}

    def take(name: str, numbers: Numbers) -> None:
        own = rows(name, numbers)
        if name not in found:
            found[name] = _class(wanted[name]).init(own.shape[-1], own)
        try:
            found[name].update(own)
        except FewbitError as error:
            raise type(error)(f"value {name!r}: {error}") from error

    with Walk(simulation, groups, batches) as walk:
        for number in range(len(groups)):
            walk.run(number, take)
    return found


def _possible(layer: Layer, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if layer.multiplies_rows or not _class(name).of_rows)


def _key(own: GraphLayer, name: str) -> tuple[str, Window | None]:
    if isinstance(own.arrangement, Kernel) and _class(name).of_rows:
        return name, Window.of(own.node, own.arrangement.shape[2:], own.arrangement.groups)
    return name, None


def _statistic(own: GraphLayer, name: str, like: Numbers) -> Any:
    kind = _class(name)
    if own.layer.groups > 1 and kind.of_rows:
        return kind.of_groups(own.layer.shape[1], own.layer.groups, like)
    return kind.init(_width(own, name), like)


def _width(own: GraphLayer, name: str) -> int:
    if isinstance(own.arrangement, Kernel) and not _class(name).of_rows:
        kernel = own.arrangement
        return kernel.shape[0] if kernel.transposed else kernel.shape[1] * kernel.groups
    return own.layer.shape[1]


def _rows(own: GraphLayer, window: Window | None, numbers: Numbers) -> Iterable[Numbers]:
    if window is not None:
        return window.rows(numbers)
    return (np.moveaxis(numbers, 1, -1) if isinstance(own.arrangement, Kernel) else numbers,)


def _require_width(own: GraphLayer, numbers: Numbers) -> None:
    """Raise `CalibrationError` for an input that the weight of a layer cannot be multiplied with."""
    kernel = own.arrangement if isinstance(own.arrangement, Kernel) else None
    wide = own.layer.shape[1]
    if kernel is not None:
        wide = kernel.shape[0] if kernel.transposed else kernel.shape[1] * kernel.groups
    axis = -1 if kernel is None else 1
    found = numbers.shape[axis] if numbers.ndim > 1 or kernel is None else None
    if found != wide:
        raise CalibrationError(
            f"{own.layer.name}: its input has shape {numbers.shape} and its weight takes {wide} numbers along axis "
            f"{axis}; the graph does not fit together, export it again"
        )


def _class(name: str) -> Any:
    return lookup(STATISTICS, name, what="statistic")
