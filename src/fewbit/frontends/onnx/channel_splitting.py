"""Split input channels of the layers of a graph: what makes them gets their rows again, or a Gather copies them.

Where everything between layers acts on each number or channel alone, also a GELU, f(W x) with rows of W again is
f(W x) with numbers again; behind anything else x[..., sources] is put before the layer if asked. Kept is what leaves
the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from fewbit.errors import FewbitError
from fewbit.frontends.onnx.batches import Numbers
from fewbit.frontends.onnx.channel_scaling import is_free
from fewbit.frontends.onnx.constant import numbers_of, put
from fewbit.frontends.onnx.elementwise import Elementwise, channel_axis
from fewbit.frontends.onnx.output_change import CLEARLY, output_change, same
from fewbit.frontends.onnx.trial_run import TrialRun
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import OnnxModel
from fewbit.problems import several
from fewbit.transforms import Applied
from fewbit.transforms.link import Channels
from fewbit.transforms.outlier_splitting import Split, grouped_sentence, split_sentence, together

#: Roundings by which outputs may differ: sums are taken in another order in every layer.
_ROUNDINGS = 2.0**14


def split_channels(model: OnnxModel, run: TrialRun, split: Split, *, gather: bool) -> Applied:
    """Split the channels of every value that linear layers read and that can get wider; say where, and where not.

    With `gather` channels are copied before the layers where what makes them cannot get wider.
    """
    before = model.graph, model.found
    groups = {own.name: own for own in _groups(model)}
    wanted = [name for name, own in groups.items() if own.makers or gather]
    trial = _Trial(model, run, split)
    kept = trial.kept(wanted)
    if kept:
        wider, added = trial.split_at(kept)
        model.graph, model.found = wider.graph, wider.found
    else:
        added = {}

    def restore() -> None:
        model.graph, model.found = before

    sentences = list(_sentences(groups, added, gather=gather))
    grouped = _in_groups(model)
    return Applied(sentences=(*sentences, *([grouped_sentence(grouped)] if grouped else [])), restore=restore)


@dataclass(frozen=True, slots=True)
class _Group:
    """Layers that read one value, and what gets wider with it, if all of that can."""

    value: ir.Value
    #: The axis of its channels, from the last.
    axis: int
    consumers: tuple[GraphLayer, ...]
    makers: Elementwise | None

    @property
    def name(self) -> str:
        """What the value is called: the same in a copy of the graph."""
        return self.value.name or ""

    @property
    def reader(self) -> str:
        """The name of the first layer."""
        return self.consumers[0].layer.name

    def widen(self, split: Split, *, whole: bool) -> int:
        """Split channels; return how many were added. With `whole`, wrongly: columns are there again, not halved."""
        weights, outputs = zip(*(_columns(own) for own in self.consumers), strict=True)
        sources, columns = split(np.concatenate(weights), together(outputs))
        starts = np.cumsum([0, *(len(own) for own in weights)])
        for own, weight, (start, stop) in zip(self.consumers, weights, pairwise(starts), strict=True):
            put(own.weight, _stored(own, weight[:, sources] if whole else columns[start:stop]))
        if self.makers:
            self.makers.widen(sources)
        else:
            self._copy(sources)
        return len(sources) - int(weights[0].shape[1])

    def _copy(self, sources: Channels) -> None:
        """Put x[..., sources], along the axis of the channels, before the consumers."""
        graph = self.consumers[0].node.graph
        assert graph is not None
        name = f"{self.name}:split"
        tensor = ir.Tensor(sources, name=f"{name}:channels")
        kind = ir.TensorType(tensor.dtype)
        index = ir.Value(name=tensor.name, type=kind, shape=tensor.shape, const_value=tensor)
        graph.register_initializer(index)
        node = ir.node("Gather", [self.value, index], attributes={"axis": self.axis}, name=name)
        node.outputs[0].name, node.outputs[0].type = name, self.value.type
        graph.insert_before(self.consumers[0].node, node)
        for own in self.consumers:
            own.node.replace_input_with(own.data_index, node.outputs[0])


@dataclass(slots=True)
class _Trial:
    """Splits groups in copies of a graph, and holds what these put out against what the graph does."""

    model: OnnxModel
    run: TrialRun
    split: Split
    _expected: Mapping[str, Numbers] = field(default_factory=dict)

    def kept(self, names: Sequence[str]) -> list[str]:
        """Return the groups that leave the output as it is: all of them, or those that do one after the other."""
        if not names:
            return []
        self._expected = self.run(self.model)
        if self._is_exact(names):
            return list(names)
        found: list[str] = []
        for name in names if len(names) > 1 else ():
            found += [name] if self._is_exact([*found, name]) else []
        return found

    def split_at(self, names: Sequence[str], *, whole: bool = False) -> tuple[OnnxModel, dict[str, int]]:
        """Return a copy of the model with these groups split, and by group how many channels were added."""
        graph, found = self.model.copy()
        copied = OnnxModel(graph, self.model.path, found)
        groups = {own.name: own for own in _groups(copied)}
        added = {name: groups[name].widen(self.split, whole=whole) for name in names}
        return OnnxModel.of(graph, self.model.path), added

    def _is_exact(self, names: Sequence[str]) -> bool:
        found = self._output(names, whole=False)
        if found is None or not same(self._expected, found, _ROUNDINGS):
            return False
        wrong = self._output(names, whole=True)
        right = output_change(self._expected, found)
        return wrong is not None and CLEARLY * right < output_change(self._expected, wrong)

    def _output(self, names: Sequence[str], *, whole: bool) -> Mapping[str, Numbers] | None:
        """Return what the graph puts out with groups split, `None` where the widths no longer fit."""
        try:
            return self.run(self.split_at(names, whole=whole)[0])
        except FewbitError:
            return None


def _groups(model: OnnxModel) -> Iterator[_Group]:
    """Yield the values that layers of the main graph read whose columns are channels, in its order."""
    layers = {id(own.node): own for own in model.found.values()}
    readers: dict[tuple[ir.Value, int], list[GraphLayer]] = {}
    for own in model.found.values():
        axis = channel_axis(own)
        if axis is not None and own.node.graph is model.graph.graph and is_free(own):
            readers.setdefault((own.data, axis), []).append(own)
    for (value, axis), consumers in readers.items():
        width = _columns(consumers[0])[0].shape[1]
        makers = Elementwise.behind(value, width, axis, layers, {id(own.node) for own in consumers})
        yield _Group(value, axis, tuple(consumers), makers)


def _columns(own: GraphLayer) -> tuple[Numbers, Channels]:
    """Return the weight as float64 (rows, in), a row for each kernel position, and which output each row is of."""
    if isinstance(own.arrangement, Kernel):
        apart = np.moveaxis(numbers_of(own.weight).astype(np.float64), 1, -1)
        return apart.reshape(-1, apart.shape[-1]), np.arange(len(apart)).repeat(own.arrangement.positions)
    matrix = own.arrangement.matrix(numbers_of(own.weight)).astype(np.float64)
    return matrix, np.arange(len(matrix))


def _stored(own: GraphLayer, columns: Numbers) -> Numbers:
    """Undo `_columns`, with another number of them."""
    if isinstance(own.arrangement, Kernel):
        outputs, _, *kernel = own.arrangement.shape
        return np.moveaxis(columns.reshape(outputs, *kernel, -1), -1, 1)
    return own.arrangement.stored(columns)


def _in_groups(model: OnnxModel) -> list[str]:
    """Return the convolutions of a graph whose channels are tied to each other."""
    return [
        name for name, own in model.found.items() if isinstance(own.arrangement, Kernel) and own.arrangement.groups > 1
    ]


def _sentences(groups: Mapping[str, _Group], added: Mapping[str, int], *, gather: bool) -> Iterator[str]:
    """Yield what the report says."""
    makers = {own.makers.names[0]: added[name] for name, own in groups.items() if own.makers and name in added}
    readers = {own.reader: added[name] for name, own in groups.items() if not own.makers and name in added}
    for found, copied in ((makers, False), (readers, True)):
        if found:
            yield split_sentence(found, several(found), copied=copied)
    if not added:
        yield "outlier-splitting: no channel could be split"
    kept = [own.reader for name, own in groups.items() if name not in added]
    if kept:
        remedy = "" if gather else "; gather = true copies channels"
        yield f"outlier-splitting: {several(kept)}: what goes in cannot get wider{remedy}"
