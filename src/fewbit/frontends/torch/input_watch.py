"""Listens to what layers are given while a model runs, and gathers statistics of it.

Layers that get the same tensor share one statistic; which they are is found in the first run and checked in the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.catalogue import lookup
from fewbit.errors import CalibrationError, FewbitError
from fewbit.frontends.torch.call_order import merged_order
from fewbit.frontends.torch.convolution import Convolution, same_rows
from fewbit.frontends.torch.layers import canonical_weight
from fewbit.frontends.torch.token_weights import TokenWeights
from fewbit.interfaces import Layer
from fewbit.statistics import GUIDED, PAIRED, STATISTICS
from fewbit.statistics.partials import Partials, Parts
from fewbit.statistics.row_sum import RowSum


@dataclass(slots=True)
class InputWatch:
    """Listens to the inputs of some layers."""

    model: nn.Module
    layers: Sequence[Layer]
    wanted: Mapping[str, Sequence[str]]
    #: What layers are given in the float model, by call.
    floats: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    #: What the rows of their inputs count.
    weights: TokenWeights = field(default_factory=TokenWeights)
    #: How many runs are summed apart.
    parts: Parts = field(default_factory=Parts)
    #: The layer that keeps the statistic of each; found in the first run.
    leaders: dict[str, str] = field(default_factory=dict)
    #: Layers in the order of their calls in the first run.
    calls: list[str] = field(default_factory=list)
    #: Whether a run that was made for groups has called a layer twice.
    repeats: bool = False
    #: Inputs seen in the run in progress, each with its version and the layer that keeps its statistic.
    current: list[tuple[Tensor, int | None, str]] = field(default_factory=list)

    def gather(self, runs: Sequence[Callable[[], Any]]) -> dict[str, dict[str, Any]]:
        """Return the statistics of each layer over all `runs`; layers that share an input share the objects."""
        kept: dict[tuple[str, str], Partials] = {}
        #: Which of the layers with one input feeds a statistic: the first that asks for it.
        feeds: dict[tuple[str, str], str] = {}
        number = 0

        def take(layer: Layer, rows: Tensor) -> None:
            leader = self._leader(layer, rows)
            own = {}
            for name in self.names(layer):
                if feeds.setdefault((leader, name), layer.name) == layer.name:
                    known = kept.setdefault((leader, name), Partials(self.parts))
                    own[name] = known.of(number, partial(self._statistic, name, layer, rows))
            self._update(layer, own, rows, {"guided": self.weights.of([layer.name], number)})

        for number, run in enumerate(runs):
            # Once it is known that each layer is called once, a run may stop when all have been.
            once = number > 0 and len(self.calls) == len(self.layers) == len(set(self.calls))
            with self._listening(take, record=number == 0, once=once):
                run()
        return {
            layer.name: {name: kept[self.leaders[layer.name], name].whole() for name in self.names(layer)}
            for layer in self.layers
            if layer.name in self.leaders
        } | self.unreached()

    def unreached(self) -> dict[str, dict[str, Any]]:
        """Return statistics of nothing, of the layers that no run has called."""
        return {
            layer.name: {name: self._nothing(name, layer) for name in self.names(layer)}
            for layer in self.layers
            if layer.name not in self.leaders
        }

    def shared(self, group: Sequence[Layer], inputs: Iterator[Tensor | None]) -> dict[str, dict[str, Any]]:
        """Return the statistics of layers that all get these inputs; `None` for a call that does without them."""
        kept: dict[str, Partials] = {}
        wanted = {name: layer for layer in reversed(group) for name in self.names(layer)}
        for number, rows in enumerate(inputs):
            if rows is None:
                continue
            kept = kept or {name: Partials(self.parts) for name in wanted}
            taking = {
                name: kept[name].of(number, partial(self._statistic, name, layer, rows))
                for name, layer in wanted.items()
            }
            own = next((self.floats[layer.name] for layer in group if layer.name in self.floats), None)
            weights = self.weights.of([layer.name for layer in group], number)
            self._update(group[0], taking, rows, {"paired": own[number] if own else None, "guided": weights})
        return {layer.name: {name: kept[name].whole() for name in self.names(layer) if name in kept} for layer in group}

    def groups(self, runs: Sequence[Callable[[], Any]]) -> list[tuple[Layer, ...]] | None:
        """Return the layers in an order that the calls of all runs keep to, those that share an input together.

        Runs are made until every layer has been called, which takes one where none is an expert; those that no run
        calls are left out. `None`: two runs call some in different orders.
        """
        orders: list[list[str]] = []
        for run in runs:
            self.calls.clear()
            with self._listening(lambda layer, rows: self._leader(layer, rows) and None, record=True):
                run()
            orders.append(list(dict.fromkeys(self.calls)))
            self.repeats |= len(orders[-1]) < len(self.calls)
            if len(self.leaders) == len(self.layers):
                break
        merged = merged_order(orders, [layer.name for layer in self.layers])
        if merged is None:
            return None
        groups: dict[str, dict[str, Layer]] = {}
        known = {layer.name: layer for layer in self.layers}
        for name in merged:
            groups.setdefault(self.leaders[name], {})[name] = known[name]
        return [tuple(group.values()) for group in groups.values()]

    def _leader(self, layer: Layer, rows: Tensor) -> str:
        """Return which layer keeps the statistic of `layer`'s input; found in the first run, checked in the others."""
        # What was written into since is another input; a tensor of inference mode cannot tell, and is not shared.
        version = None if rows.is_inference() else rows._version
        same = (
            leader
            for seen, then, leader in self.current
            if seen is rows
            and then == version is not None
            and same_rows(self._module(leader), self._module(layer.name))
        )
        first = next(same, layer.name)
        if self.leaders.setdefault(layer.name, first) != first:
            raise CalibrationError(
                f"{layer.name}: it shares its input with {self.leaders[layer.name]} in one calibration batch and not "
                "in another; give batches that take the same way through the model"
            )
        self.current.append((rows, version, first))
        return first

    def names(self, layer: Layer) -> list[str]:
        """Return the statistics that `layer` is to have and can have."""
        unknown = () if layer.name in self.floats and layer.groups == 1 else PAIRED
        return [
            name
            for name in self.wanted[layer.name]
            if (layer.multiplies_rows or not _class(name).of_rows) and name not in unknown
        ]

    def _nothing(self, name: str, layer: Layer) -> Any:
        own = Partials(self.parts)
        own.of(0, lambda: self._statistic(name, layer, self._weight(layer)))
        return own.whole()

    def _statistic(self, name: str, layer: Layer, rows: Tensor) -> Any:
        kind, convolution = _class(name), Convolution.of(self._module(layer.name))
        if convolution and not kind.of_rows:
            return kind.init(convolution.in_channels, rows)
        if layer.groups > 1:
            return kind.of_groups(layer.shape[1], layer.groups, rows)
        statistic = kind.init(layer.shape[1], rows)
        if layer.expert and isinstance(statistic, RowSum):
            # With as many rows as inputs GPTQ leaves less error on other tokens than a search without data.
            statistic.least = layer.shape[1]
        return statistic

    def _module(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def _weight(self, layer: Layer) -> Tensor:
        return canonical_weight(self._module(layer.name))

    def _update(
        self, layer: Layer, statistics: Mapping[str, Any], inputs: Tensor, beside: Mapping[str, Tensor | None]
    ) -> None:
        """Take in the rows of what `layer` is given: of a convolution a patch for each position.

        `beside` are the same rows in the float model, and what each counts, where that is known.
        """
        convolution = Convolution.of(self._module(layer.name))

        def pieces(given: Tensor, *, of_rows: bool) -> Iterable[Tensor]:
            if not convolution:
                return (given,)
            return convolution.rows(given) if of_rows else (convolution.channels_last(given),)

        for name, statistic in statistics.items():
            second = beside.get("paired" if name in PAIRED else "guided" if name in GUIDED else "")
            both = (inputs,) if second is None else (inputs, second)
            if name in PAIRED and both[-1].shape != inputs.shape:
                raise CalibrationError(
                    f"{layer.name}: {name}: behind quantized layers it gets other tokens than in the float model; "
                    "leave out what asks for that statistic"
                )
            try:
                for rows in zip(*(pieces(given, of_rows=statistic.of_rows) for given in both), strict=True):
                    statistic.update(*rows)
            except FewbitError as error:
                raise type(error)(f"{layer.name}: {name}: {error}") from error

    @contextmanager
    def _listening(self, take: Callable[[Layer, Tensor], Any], *, record: bool, once: bool = False) -> Iterator[None]:
        left = {layer.name for layer in self.layers}

        def hook(layer: Layer) -> Any:
            @torch.no_grad()
            def enter(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG001
                take(layer, args[0] if args else next(iter(kwargs.values())))
                if record:
                    self.calls.append(layer.name)
                left.discard(layer.name)
                if once and not left:
                    raise _EnoughError

            return self._module(layer.name).register_forward_pre_hook(enter, with_kwargs=True)

        handles = [hook(layer) for layer in self.layers]
        try:
            yield
        except _EnoughError:
            pass
        finally:
            self.current.clear()
            for handle in handles:
                handle.remove()


def _class(name: str) -> Any:
    return lookup(STATISTICS, name, what="statistic")


class _EnoughError(BaseException):
    """Stops a run when every layer that is listened to was called; no `except Exception` in a model catches it."""
