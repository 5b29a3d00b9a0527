"""A part of a live model as transforms see it: its links, statistics of what its layers get, weights to be rescaled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from fewbit.frontends.torch.channel_scaling import Changes, exchange
from fewbit.frontends.torch.input_watch import InputWatch
from fewbit.frontends.torch.layers import canonical_weight
from fewbit.frontends.torch.links import Fold, LinkSearch
from fewbit.interfaces import Layer
from fewbit.transforms.link import Factors, Link

#: Runs that links are looked for in, at most: more than one only where one does not reach every layer.
_RUNS = 4


class LinkScope:
    """A block of a model, or a model without blocks; see `fewbit.transforms.scope.Scope`."""

    def __init__(
        self,
        model: nn.Module,
        part: str,
        layers: Sequence[Layer],
        runs: Sequence[Callable[[], Any]],
        *,
        repeatable: bool = True,
        known: dict[Any, Any] | None = None,
    ) -> None:
        """Prepare; `runs` run the part on its calls, and give the same again if it is `repeatable`."""
        self._model, self._part, self._runs, self._repeatable = model, part, runs, repeatable
        self._layers = {layer.name: layer for layer in layers}
        self._before: Changes = []
        #: What links other parts had.
        self._known = {} if known is None else known

    @property
    def name(self) -> str:
        """Dotted path; empty: the whole model."""
        return self._part

    @property
    def links(self) -> tuple[Link, ...]:
        """What an exact fold has proven; a part that cannot be run again has none."""
        return tuple(fold.link for fold in self._folds)

    @cached_property
    def _folds(self) -> tuple[Fold, ...]:
        if not self._repeatable:
            return ()
        some = [self._runs[number] for number in range(min(_RUNS, len(self._runs)))]
        return LinkSearch(self._model, self._part, list(self._layers.values()), some, known=self._known).folds()

    def weight(self, layer: str) -> Tensor:
        """Return the weight of a layer as it now is, (out, in)."""
        return canonical_weight(self._model.get_submodule(layer))

    def statistics(self, wanted: Mapping[str, Sequence[str]]) -> Mapping[str, Mapping[str, Any]]:
        """Return statistics by name of what layers are given, of those that an input reaches."""
        layers = [self._layers[name] for name in wanted]
        return InputWatch(self._model, layers, wanted).gather(self._runs)

    def rescale(self, link: Link, factors: Factors) -> Factors:
        """Divide the channels of the link's producer by about `factors`; return by what, to the last bit."""
        fold = next(fold for fold in self._folds if fold.link is link)
        exact = fold.storable(factors)
        self._before = [*fold.fold(exact), *self._before]
        return exact

    def restore(self) -> None:
        """Give every weight back its numbers."""
        exchange(self._before)
        self._before = []
