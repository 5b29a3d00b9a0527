"""Split channels between layers of a live model: the producer gets their rows again, consumers the halves.

Behind an element-wise activation that no factor passes, as GELU, which layer reads which is tried; so is which other
one of a gated MLP, or before a BatchNorm, is widened too. Kept is what leaves the output, and changes it when columns
are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from torch import nn

from fewbit.frontends.torch.calls import Call, copied, same
from fewbit.frontends.torch.channel_scaling import Form
from fewbit.frontends.torch.channel_widths import (
    columns_of,
    in_groups,
    is_plain,
    norms_channels,
    repeat_channels,
    restorer,
    set_columns,
)
from fewbit.frontends.torch.copied_channels import copy_channels
from fewbit.frontends.torch.layers import canonical_weight, find_layers
from fewbit.frontends.torch.link_parts import outside_blocks, runnable_parts
from fewbit.frontends.torch.links import Fold, LinkSearch
from fewbit.frontends.torch.output_change import CLEARLY, output_change
from fewbit.interfaces import Layer
from fewbit.problems import several
from fewbit.transforms import Applied
from fewbit.transforms.link import Channels, Link
from fewbit.transforms.outlier_splitting import Split, grouped_sentence, split_sentence, together

#: Roundings by which the output of a part may differ: sums are taken in another order.
_ROUNDINGS = 2.0**8


def split_channels(model: nn.Module, batch: Any, split: Split, *, gather: bool) -> Applied:
    """Split the channels of every link from a layer that can be; say where, and where it could not.

    With `gather` channels of what norms put out are copied.
    """
    call = Call.made_up(model) if batch is None else Call.of(batch)
    if call is None:
        return Applied(sentences=("outlier-splitting: no data shows what reads the channels of a layer; give some",))
    layers, known = find_layers(model), dict[Any, Any]()
    done = _Splitting(model, split, gather)
    try:
        for part, own, runs in runnable_parts(model, layers, call.batch()):
            outside = None if part else set(outside_blocks(model, layers))
            current = own if part else find_layers(model)
            folds = LinkSearch(model, part, current, runs, among=outside, known=known).folds()
            for fold in folds:
                done.widen(fold, current, runs[0])
            among = [layer for layer in current if outside is None or layer.name in outside]
            done.widen_behind_activations(among, [fold.link for fold in folds], runs[0])
    except BaseException:
        done.restore()
        raise
    return Applied(sentences=done.sentences, restore=done.restore)


@dataclass(frozen=True, slots=True)
class _Way:
    """What may get wider together."""

    producer: str
    consumers: Sequence[str]
    #: What gets more rows; nothing: the norm that is the producer copies channels of what it puts out.
    makers: Sequence[nn.Module] = ()


@dataclass(slots=True)
class _Splitting:
    """Widens link after link."""

    model: nn.Module
    split: Split
    gather: bool
    #: Names of producers, with how many channels were added, by whether they are copied, and of those that stay.
    widened: dict[str, int] = field(default_factory=dict)
    copied: dict[str, int] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    #: Names of producers at convolutions in groups.
    grouped: list[str] = field(default_factory=list)
    #: Whether a norm is among these.
    _kept_norm: bool = False
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def widen(self, fold: Fold, layers: Sequence[Layer], run: Callable[[], Any]) -> None:
        """Split channels of a link, if the output of `run` stays what it was."""
        link, norm = fold.link, fold.form is not Form.ROWS
        ways: Iterable[_Way] = (_Way(link.producer, link.consumers, makers) for makers in self._makers(fold, layers))
        if norm and self.gather:
            ways = [*ways, _Way(link.producer, link.consumers)]
        grouped = any(in_groups(self.model.get_submodule(name)) for name in (link.producer, *link.consumers))
        added, by_copies = self._first(ways, run) if self._takes(fold) else (0, False)
        if added:
            (self.copied if by_copies else self.widened)[link.producer] = added
        elif grouped:
            self.grouped.append(link.producer)
        else:
            self.kept.append(link.producer)
            self._kept_norm |= norm

    def widen_behind_activations(self, layers: Sequence[Layer], links: Sequence[Link], run: Callable[[], Any]) -> None:
        """Split channels between layers without a link that an element-wise function may lie between."""
        plain = [layer for layer in layers if self._is_plain(layer)]
        read = {name for link in links for name in link.consumers}
        made = {link.producer for link in links}
        for producer in plain:
            maker = self.model.get_submodule(producer.name)
            ways = (
                _Way(producer.name, (layer.name,), [maker])
                for layer in plain
                if layer is not producer
                and layer.name not in read
                and self._width(layer, 1) == self._width(producer, 0)
            )
            added, _ = self._first(ways, run) if producer.name not in made else (0, False)
            if added:
                self.widened[producer.name] = added

    def _first(self, ways: Iterable[_Way], run: Callable[[], Any]) -> tuple[int, bool]:
        """Widen by the first of `ways` that leaves the output of `run`; return how many channels were added.

        And whether they are copied.
        """
        expected = None
        for way in ways:
            expected = copied(run()) if expected is None else expected
            before = self._undo
            added = self._tried(way, expected, run)
            if added:
                return added, not way.makers
            _call(self._undo[: len(self._undo) - len(before)])
            self._undo = before
        return 0, False

    def _tried(self, way: _Way, expected: Any, run: Callable[[], Any]) -> int:
        """Widen, and return how many channels were added, 0 where the output does not show that this is right."""
        weights, outputs = zip(*(columns_of(self.model.get_submodule(name)) for name in way.consumers), strict=True)
        sources, columns = self.split(np.concatenate(weights), together(outputs))
        starts = np.cumsum([0, *(len(own) for own in weights)])
        halves = [columns[start:stop] for start, stop in pairwise(starts)]
        self._apply(way, sources, halves)
        found = _output(run)
        if found is None or not same(expected, found, _ROUNDINGS):
            return 0
        self._columns(way.consumers, [own[:, sources] for own in weights])
        change = output_change(expected, _output(run))
        self._columns(way.consumers, halves)
        right = CLEARLY * output_change(expected, found) < change
        return len(sources) - int(weights[0].shape[1]) if right else 0

    def _takes(self, fold: Fold) -> bool:
        """Whether a channel is one input of layers, for every position the same, which hold their weights alone."""
        link = fold.link
        names = (link.producer, *link.consumers) if fold.form is Form.ROWS else link.consumers
        plain = all(is_plain(self.model.get_submodule(name)) for name in names)
        return plain and np.array_equal(link.channels, np.arange(link.outputs))

    def _is_plain(self, layer: Layer) -> bool:
        module = self.model.get_submodule(layer.name)
        return is_plain(module) and not layer.tied and "weight" in module._parameters

    def _width(self, layer: Layer, axis: int) -> int:
        """Return how many outputs, axis 0, or input channels a layer has by now."""
        module: Any = self.model.get_submodule(layer.name)
        return (
            int(getattr(module, "in_channels", None) or canonical_weight(module).shape[1])
            if axis
            else len(canonical_weight(module))
        )

    def _makers(self, fold: Fold, layers: Sequence[Layer]) -> Iterator[list[nn.Module]]:
        """Yield what may have to be widened together: the producer, then each other layer with as many outputs too.

        A BatchNorm never gets wider alone; another norm does not at all.
        """
        link = fold.link
        producer = self.model.get_submodule(link.producer)
        if fold.form is Form.ROWS:
            yield [producer]
        elif not norms_channels(producer):
            return
        for layer in layers:
            other = self.model.get_submodule(layer.name)
            if layer.name in (link.producer, *link.consumers) or not self._is_plain(layer):
                continue
            if canonical_weight(other).shape[0] == link.outputs:
                yield [producer, other]

    def _apply(self, way: _Way, sources: Channels, columns: Sequence[Any]) -> None:
        """Give the makers the rows of `sources`, or let the norm copy them; give consumers these columns."""
        changed = [*way.makers, *(self.model.get_submodule(name) for name in way.consumers)]
        self._undo = [*(restorer(module) for module in changed), *self._undo]
        for maker in way.makers:
            repeat_channels(maker, sources)
        if not way.makers:
            self._undo = [copy_channels(self.model.get_submodule(way.producer), sources), *self._undo]
        self._columns(way.consumers, columns)

    def _columns(self, consumers: Sequence[str], columns: Sequence[Any]) -> None:
        for name, own in zip(consumers, columns, strict=True):
            set_columns(self.model.get_submodule(name), own)

    def restore(self) -> None:
        """Give every layer back what it had."""
        _call(self._undo)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the report says."""
        said = []
        for found, by_gather in ((self.widened, False), (self.copied, True)):
            if found:
                said.append(split_sentence(found, several(found), copied=by_gather))
        if not said:
            said.append("outlier-splitting: no channel could be split")
        if self.kept:
            remedy = "; gather = true copies channels behind norms" if self._kept_norm and not self.gather else ""
            said.append(f"outlier-splitting: {several(self.kept)}: what it makes cannot get wider{remedy}")
        if self.grouped:
            said.append(grouped_sentence(self.grouped))
        return tuple(said)


def _call(undo: Iterable[Callable[[], None]]) -> None:
    for own in undo:
        own()


def _output(run: Callable[[], Any]) -> Any:
    """Return a copy of what `run` gives, `None` where the widths no longer fit."""
    try:
        return copied(run())
    except Exception:  # a module may refuse another width in any way
        return None
