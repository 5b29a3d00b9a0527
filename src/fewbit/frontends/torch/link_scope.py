"""A part of a live model as transforms see it: its links, statistics of what its layers get, weights to be rescaled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn

from fewbit.frontends.torch.absorption import absorb
from fewbit.frontends.torch.channel_scaling import Changes, exchange, input_magnitudes
from fewbit.frontends.torch.input_watch import InputWatch
from fewbit.frontends.torch.layers import canonical_weight
from fewbit.frontends.torch.links import Fold, LinkSearch
from fewbit.interfaces import Layer
from fewbit.transforms.folded_scope import FoldedScope
from fewbit.transforms.link import Factors

#: Runs that links are looked for in, at most: more than one only where one does not reach every layer.
_RUNS = 4


class LinkScope(FoldedScope[Fold]):
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
        super().__init__(self._layers)
        self.experts = [layer.name for layer in layers if layer.expert]
        #: What each parameter was at first.
        self._before: dict[tuple[nn.Module, str], nn.Parameter] = {}
        #: What links other parts had.
        self._alike = {} if known is None else known

    @property
    def name(self) -> str:
        """Dotted path; empty: the whole model."""
        return self._part

    @cached_property
    def _folds(self) -> tuple[Fold, ...]:
        """Return none of a part that cannot be run again."""
        if not self._repeatable:
            return ()
        layers = list(self._layers.values())
        return LinkSearch(self._model, self._part, layers, self._some, known=self._alike).folds()

    @property
    def _some(self) -> list[Callable[[], Any]]:
        return [self._runs[number] for number in range(min(_RUNS, len(self._runs)))]

    def output_magnitudes(self, layer: str) -> Factors:
        """Return the largest magnitude of the weights of each output channel, (outputs,)."""
        found: Factors = self.weight(layer).abs().amax(1).double().cpu().numpy()
        return found

    def input_magnitudes(self, layer: str) -> Factors:
        """Return the largest magnitude of the weights that read each input channel, (inputs,)."""
        return input_magnitudes(self._model.get_submodule(layer))

    def weight(self, layer: str) -> Tensor:
        """Return the weight of a layer as it now is, (out, in)."""
        return canonical_weight(self._model.get_submodule(layer))

    def statistics(self, wanted: Mapping[str, Sequence[str]]) -> Mapping[str, Mapping[str, Any]]:
        """Return statistics by name of what layers are given, of those that an input reaches."""
        layers = [self._layers[name] for name in wanted]
        return InputWatch(self._model, layers, wanted).gather(self._runs)

    def _absorbed(self, fold: Fold, shift: Factors) -> tuple[float, Changes] | str:
        return absorb(fold, self._some, shift)

    def _remember(self, before: Changes) -> None:
        for module, parameters in before:
            for name, parameter in parameters.items():
                self._before.setdefault((module, name), parameter)

    def restorer(self) -> Callable[[], None]:
        """Return what gives every weight back its numbers; it holds nothing but those."""
        return partial(_restore, self._before)


def _restore(before: Mapping[tuple[nn.Module, str], nn.Parameter]) -> None:
    exchange((module, {name: parameter}) for (module, name), parameter in before.items())
