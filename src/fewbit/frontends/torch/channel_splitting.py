"""Split channels between linear layers of a live model: the producer gets their rows again, consumers the halves.

Where an activation is multiplied by another, as in gated MLPs, the layer that makes the other is widened too: which, if
any, is tried. Kept is what leaves the output as it was, and changes it when columns are whole instead of halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbit.frontends.torch.calls import Call, copied, same
from fewbit.frontends.torch.channel_scaling import Form, parameter_like, stored_weight
from fewbit.frontends.torch.layers import canonical_weight, find_layers, module_class
from fewbit.frontends.torch.link_parts import outside_blocks, runnable_parts
from fewbit.frontends.torch.links import Fold, LinkSearch
from fewbit.frontends.torch.output_change import CLEARLY, output_change
from fewbit.interfaces import Layer
from fewbit.problems import several
from fewbit.transforms import Applied
from fewbit.transforms.link import Channels

#: From float64 columns (out, in) of all consumers to the channel that each new column is of, and the new columns.
Split = Callable[[np.ndarray[Any, Any]], tuple[Channels, np.ndarray[Any, Any]]]
#: Roundings by which the output of a part may differ: sums are taken in another order.
_ROUNDINGS = 2.0**8
#: What says how wide a layer is.
_WIDTHS = ("in_features", "out_features", "nf", "nx")
_KINDS = ("Linear", "Conv1D")


def split_channels(model: nn.Module, batch: Any, split: Split) -> Applied:
    """Split the channels of every link from a linear layer that can be; say where, and where it could not."""
    call = Call.made_up(model) if batch is None else Call.of(batch)
    if call is None:
        return Applied(sentences=("outlier-splitting: no data shows what reads the channels of a layer; give some",))
    layers, known = find_layers(model), dict[Any, Any]()
    done = _Splitting(model, split)
    try:
        for part, own, runs in runnable_parts(model, layers, call.batch()):
            outside = None if part else set(outside_blocks(model, layers))
            current = own if part else find_layers(model)
            for fold in LinkSearch(model, part, current, runs, among=outside, known=known).folds():
                done.widen(fold, current, runs[0])
    except BaseException:
        done.restore()
        raise
    return Applied(sentences=done.sentences, restore=done.restore)


@dataclass(slots=True)
class _Splitting:
    """Widens link after link."""

    model: nn.Module
    split: Split
    #: Names of producers, with how many channels were added, and of those whose links keep their width.
    widened: dict[str, int] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    _before: list[tuple[nn.Module, dict[str, Any]]] = field(default_factory=list)

    def widen(self, fold: Fold, layers: Sequence[Layer], run: Callable[[], Any]) -> None:
        """Split channels of a link, if the output of `run` stays what it was."""
        link = fold.link
        if fold.form is not Form.ROWS or not self._takes(fold):
            self.kept.append(link.producer)
            return
        weights = [canonical_weight(self.model.get_submodule(name)).double().cpu().numpy() for name in link.consumers]
        sources, columns = self.split(np.concatenate(weights))
        starts = np.cumsum([0, *(len(own) for own in weights)])
        halves = [columns[start:stop] for start, stop in pairwise(starts)]
        whole = [own[:, sources] for own in weights]
        expected = copied(run())
        for makers in self._makers(fold, layers):
            before = self._before
            self._try(makers, link.consumers, sources, halves)
            found = _output(run)
            if found is not None and same(expected, found, _ROUNDINGS):
                self._columns(link.consumers, whole)
                change = output_change(expected, _output(run))
                self._columns(link.consumers, halves)
                if CLEARLY * output_change(expected, found) < change:
                    self.widened[link.producer] = len(sources) - link.outputs
                    return
            _restore(self._before[: len(self._before) - len(before)])
            self._before = before
        self.kept.append(link.producer)

    def _takes(self, fold: Fold) -> bool:
        """Whether a channel is one input of linear layers, which hold their weights alone."""
        link = fold.link
        modules = [self.model.get_submodule(name) for name in (link.producer, *link.consumers)]
        plain = all(module_class(module) in _KINDS for module in modules)
        return plain and np.array_equal(link.channels, np.arange(link.outputs))

    def _makers(self, fold: Fold, layers: Sequence[Layer]) -> Iterator[list[nn.Module]]:
        """Yield what may have to be widened together: the producer, then each other layer with as many outputs too."""
        link = fold.link
        producer = self.model.get_submodule(link.producer)
        yield [producer]
        for layer in layers:
            other = self.model.get_submodule(layer.name)
            if layer.name in (link.producer, *link.consumers) or layer.tied or module_class(other) not in _KINDS:
                continue
            if canonical_weight(other).shape[0] == link.outputs:
                yield [producer, other]

    def _try(
        self, makers: Sequence[nn.Module], consumers: Sequence[str], sources: Channels, columns: Sequence[Any]
    ) -> None:
        """Give the makers the rows of `sources`, and consumers these columns; what they had can be restored."""
        changed = [*makers, *(self.model.get_submodule(name) for name in consumers)]
        self._before = [*((module, _state(module)) for module in changed), *self._before]
        for maker in makers:
            rows = torch.from_numpy(sources).to(canonical_weight(maker).device)
            _set(maker, canonical_weight(maker)[rows], rows)
        self._columns(consumers, columns)

    def _columns(self, consumers: Sequence[str], columns: Sequence[Any]) -> None:
        for name, own in zip(consumers, columns, strict=True):
            consumer = self.model.get_submodule(name)
            _set(consumer, torch.from_numpy(own).to(canonical_weight(consumer).device))

    def restore(self) -> None:
        """Give every layer back what it had."""
        _restore(self._before)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the report says."""
        said = []
        if self.widened:
            many = f"{len(self.widened)} links" if len(self.widened) > 1 else "1 link"
            added = sum(self.widened.values())
            said.append(f"outlier-splitting: {added} channels were split on {many}: {several(self.widened)}")
        else:
            said.append("outlier-splitting: no channel could be split")
        if self.kept:
            said.append(f"outlier-splitting: {several(self.kept)}: what it makes cannot get wider")
        return tuple(said)


def _output(run: Callable[[], Any]) -> Any:
    """Return a copy of what `run` gives, `None` where the widths no longer fit."""
    try:
        return copied(run())
    except Exception:  # a module may refuse another width in any way
        return None


def _set(module: Any, weight: Tensor, rows: Tensor | None = None) -> None:
    """Give a layer another weight (out, in), of its own bias these `rows`, and the widths that go with it."""
    module._parameters["weight"] = stored_weight(module, weight)
    if rows is not None and module.bias is not None:
        module._parameters["bias"] = parameter_like(module.bias, module.bias.detach()[rows])
    widths = {"in_features": 1, "nx": 1, "out_features": 0, "nf": 0}
    for name, axis in widths.items():
        if hasattr(module, name):
            setattr(module, name, int(weight.shape[axis]))


def _state(module: Any) -> dict[str, Any]:
    """Return the parameters and widths of a layer."""
    return {**module._parameters, **{name: getattr(module, name) for name in _WIDTHS if hasattr(module, name)}}


def _restore(before: Sequence[tuple[nn.Module, dict[str, Any]]]) -> None:
    for module, state in before:
        for name, value in state.items():
            setattr(module, name, value)
