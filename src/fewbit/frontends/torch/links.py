"""The links of a part of a model: candidates from marked runs, each accepted by an exact fold of random factors.

With powers of two f: W_producer / f and W_consumers diag(f) must leave the output as it was, and with the factors of
the columns moved on by one channel they must not. No table of architectures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fewbit.frontends.torch.channel_marks import TOLERANCE, MarkedRuns
from fewbit.frontends.torch.channel_scaling import (
    Changes,
    Form,
    exchange,
    forms,
    is_norm,
    with_divided_outputs,
    with_multiplied_inputs,
)
from fewbit.frontends.torch.layers import canonical_weight
from fewbit.frontends.torch.output_change import CLEARLY
from fewbit.interfaces import Layer
from fewbit.transforms.link import Factors, Link, storable

#: Powers of two that the random factors are, in both directions: far enough to meet a bend such as that of ReLU6; of a
#: gain beside 1 near enough to leave it its precision.
_POWERS = {Form.ROWS: (4, 5, 6), Form.GAIN: (4, 5, 6), Form.GAIN_BESIDE_ONE: (1, 2, 3)}
#: Roundings by which outputs may differ: 1 takes digits from a gain that is small.
_ROUNDINGS = {Form.ROWS: TOLERANCE, Form.GAIN: TOLERANCE, Form.GAIN_BESIDE_ONE: 16 * TOLERANCE}


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """A link of a live model, and how numbers move along it."""

    model: nn.Module
    link: Link
    form: Form

    def storable(self, factors: Factors) -> Factors:
        """Return factors close by under which a gain becomes a number of 8 bits, as every 16-bit file holds it."""
        if self.form is Form.ROWS:
            return factors
        norm: Any = self.model.get_submodule(self.link.producer)
        gain = norm.weight.detach().double().cpu().numpy()
        beside = 1.0 if self.form is Form.GAIN_BESIDE_ONE else 0.0
        return storable(gain + beside, factors, beside)

    def fold(self, factors: Factors, columns: Factors | None = None) -> Changes:
        """Divide the producer's channels by `factors`, multiply the columns that read them; return what was there.

        `columns` are others for the columns.
        """
        producer = self.model.get_submodule(self.link.producer)
        changes = [(producer, with_divided_outputs(producer, _like(producer, factors), self.form))]
        spread = self.link.spread(factors if columns is None else columns)
        for name in self.link.consumers:
            consumer = self.model.get_submodule(name)
            changes.append((consumer, with_multiplied_inputs(consumer, _like(consumer, spread))))
        return exchange(changes)


@dataclass(slots=True)
class LinkSearch:
    """A part of a model that can be run again and again."""

    model: nn.Module
    #: Dotted path of the part; empty: all of it.
    part: str
    #: The quantizable layers in it.
    layers: Sequence[Layer]
    #: Each runs the part and returns its output.
    runs: Sequence[Callable[[], Any]]
    #: Names of the modules to look at; `None`: all of the part.
    among: Collection[str] | None = None
    #: What was found in parts with the same layers, by those; it is tried first.
    known: dict[Any, tuple[str, tuple[Fold, ...]]] = field(default_factory=dict)
    _marked: MarkedRuns = field(init=False)
    _owners: Counter[int] = field(init=False)

    def folds(self) -> tuple[Fold, ...]:
        """Return the links in the order of the tree of modules."""
        self._owners = Counter(id(own) for module in self.model.modules() for own in module._parameters.values())
        readers = [layer.name for layer in self.layers if layer.kind != "embedding" and self._own_weight(layer.name)]
        producers = dict(self._producers())
        self._marked = MarkedRuns(self.model, readers, list(producers.values()), self.runs)
        self._marked.record()
        structure = tuple((layer.name.removeprefix(self.part), layer.shape) for layer in self.layers)
        folds = self._as_before(*self.known[structure]) if structure in self.known else None
        if folds is None:
            folds = tuple(fold for name in producers for fold in self._folds_of(name))
        self.known[structure] = self.part, folds
        return folds

    def _as_before(self, part: str, before: tuple[Fold, ...]) -> tuple[Fold, ...] | None:
        """Return the links that another part had, if each is one of this part."""
        folds = []
        for fold in before:
            names = [self.part + name.removeprefix(part) for name in (fold.link.producer, *fold.link.consumers)]
            link = replace(fold.link, producer=names[0], consumers=tuple(names[1:]))
            folds.append(replace(fold, link=link))
            if self._missed(link.outputs) or not self._is_exact(folds[-1]):
                return None
        return tuple(folds)

    def _producers(self) -> Iterator[tuple[str, nn.Module]]:
        layers = {layer.name for layer in self.layers if layer.kind != "embedding"}
        part = self.model.get_submodule(self.part)
        for name, module in part.named_modules(prefix=self.part):
            asked = self.among is None or name in self.among
            if asked and (name in layers or is_norm(module)) and self._own_weight(name):
                yield name, module

    def _own_weight(self, name: str) -> bool:
        """Whether the weight of a module is a parameter of its own: none made at each call, none that others share."""
        weight = self.model.get_submodule(name)._parameters.get("weight")
        return weight is not None and self._owners[id(weight)] == 1

    def _folds_of(self, name: str) -> Iterator[Fold]:
        """Yield the link from the module called `name`, if there is one."""
        producer = self.model.get_submodule(name)
        read = self._marked.channels(producer)
        channels = next(iter(read.values()), None)
        if channels is None or channels.max() < 0 or not all(np.array_equal(own, channels) for own in read.values()):
            return
        outputs = self._outputs(producer)
        if self._missed(outputs):
            return
        link = Link(name, tuple(read), channels, outputs)
        for form in forms(producer):
            fold = Fold(self.model, link, form)
            if self._is_exact(fold):
                yield self._with_dead_channels(fold)
                return

    def _with_dead_channels(self, fold: Fold) -> Fold:
        """Return the link with channels that were 0 in every run, as behind ReLU, where runs on +|y| and -|y| prove it.

        y is what the producer puts out: so each channel is seen on either side of 0.
        """
        link, producer = fold.link, self.model.get_submodule(fold.link.producer)
        if (link.channels >= 0).all():
            return fold
        with self._with_sign(producer, 1.0) as marked:
            read = marked.channels(producer)
            channels = next(iter(read.values()), link.channels)
            known = link.channels >= 0
            alike = all(np.array_equal(own, channels) for own in read.values())
            if tuple(read) != link.consumers or not alike or not np.array_equal(channels[known], link.channels[known]):
                return fold
            whole = replace(fold, link=replace(link, channels=channels))
            if not self._is_exact(whole, marked):
                return fold
        with self._with_sign(producer, -1.0) as marked:
            proven = self._moves_nothing(whole, marked)
        return whole if proven and self._is_exact(whole) else fold

    @contextmanager
    def _with_sign(self, producer: nn.Module, sign: float) -> Iterator[MarkedRuns]:
        """Yield runs in which all that `producer` puts out has one sign."""
        handle = producer.register_forward_hook(lambda _, __, output: sign * output.abs())
        try:
            marked = MarkedRuns(self.model, self._marked.readers, [producer], self.runs)
            marked.record()
            yield marked
        finally:
            handle.remove()

    def _missed(self, outputs: int) -> bool:
        """Whether a layer that no run has reached could read that many channels too: an expert without tokens."""
        return any(
            layer.name not in self._marked.rows and layer.kind != "embedding" and layer.shape[1] == outputs
            for layer in self.layers
        )

    def _is_exact(self, fold: Fold, marked: MarkedRuns | None = None) -> bool:
        factors, marked = _drawn(fold), marked or self._marked
        right = max(self._change(fold, own, own, marked) for own in (factors, 1.0 / factors))
        wrong = self._change(fold, factors, np.roll(factors, 1) * 2.0, marked)
        return right < np.inf and not wrong <= CLEARLY * right  # NaN, of float16 that overflows, is wrong enough

    def _moves_nothing(self, fold: Fold, marked: MarkedRuns) -> bool:
        """Whether the output stays, which may be because nothing reaches it."""
        factors = _drawn(fold)
        return all(self._change(fold, own, own, marked) < np.inf for own in (factors, 1.0 / factors))

    def _change(self, fold: Fold, factors: Factors, columns: Factors, marked: MarkedRuns) -> float:
        """Return how far the output goes with these factors, which are taken back.

        Infinitely far if the columns have the factors of the rows and a number still differs by more than roundings.
        """
        before = fold.fold(factors, columns)
        try:
            same = factors is not columns or marked.same_outputs(_ROUNDINGS[fold.form])
            return marked.change() if same else np.inf
        finally:
            exchange(before)

    @staticmethod
    def _outputs(producer: nn.Module) -> int:
        return len(producer.weight) if is_norm(producer) else canonical_weight(producer).shape[0]  # type: ignore[arg-type]


def _drawn(fold: Fold) -> Factors:
    """Return random powers of two, the same each time, 1 of channels that nothing reads."""
    draw, outputs = np.random.RandomState(0), fold.link.outputs
    powers = draw.choice(_POWERS[fold.form], outputs) * draw.choice((-1, 1), outputs)
    return np.where(fold.link.read, np.exp2(powers), 1.0)


def _like(module: Any, factors: Factors) -> torch.Tensor:
    return torch.from_numpy(factors).to(module.weight.device)
