"""What a transform on links gets to work with, and what it gives back; never a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fewbit.known_output import KnownOutput
from fewbit.numerics.namespace import Array
from fewbit.schemes.scheme import Scheme
from fewbit.transforms.link import Factors, Link


@dataclass(frozen=True, slots=True)
class Rounded:
    """How a layer will be rounded."""

    weight: Scheme
    #: `None`: its input stays float.
    input: Scheme | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Rescaled:
    """A link along which numbers have moved."""

    link: Link
    #: By what the producer's output channels are divided now, (outputs,).
    factors: Factors
    #: For the report, such as `alpha 0.50`.
    setting: str
    #: What is taken off the divided channels and comes back as a bias of the consumers, (outputs,); `None`: nothing.
    shift: Factors | None = None
    #: How far that took the output of the scope, |after - before| / |before|; `None`: nowhere, it is exact.
    change: float | None = None
    #: Why the link is as it was; empty: it is not.
    left: str = ""

    @property
    def taken_off(self) -> Factors:
        """What is taken off each channel, (outputs,)."""
        return np.zeros(self.link.outputs) if self.shift is None else self.shift


class Scope(Protocol):
    """A block of a model, or a model without blocks, on the inputs that the quantized blocks before it give it."""

    #: What BatchNorms tell of the outputs of layers, by name; who prepares the scope puts it there.
    known: Mapping[str, KnownOutput]

    @property
    def name(self) -> str:
        """Dotted path; empty: the whole model."""

    @property
    def links(self) -> Sequence[Link]:
        """What an exact fold has proven."""

    @property
    def layers(self) -> Collection[str]:
        """The quantizable layers; norms are not among them."""

    @property
    def experts(self) -> Collection[str]:
        """Those of them that a router sends a part of the tokens to."""

    def output_magnitudes(self, layer: str) -> Factors:
        """Return the largest magnitude of the weights of each output channel, (outputs,)."""

    def input_magnitudes(self, layer: str) -> Factors:
        """Return the largest magnitude of the weights that read each input channel, (inputs,)."""

    def weight(self, layer: str) -> Array:
        """Return the weight of a layer as it now is, (out, in)."""

    def statistics(self, wanted: Mapping[str, Sequence[str]]) -> Mapping[str, Mapping[str, Any]]:
        """Return statistics by name of what layers are given, of those that an input reaches."""

    def rescale(self, link: Link, factors: Factors) -> Factors:
        """Divide the channels of the link's producer by about `factors`; return by what, to the last bit.

        Of norms they are such that the new gain has 8 bits: files in 16 bits hold it as it is.
        """

    def absorb(self, link: Link, shift: Factors) -> float | str:
        """Take `shift` (outputs,) off the channels of the link's producer, and add what it made to biases of consumers.

        Returns how far that took the output of the scope, |after - before| / |before|; or why nothing was changed.
        """

    def restorer(self) -> Callable[[], None]:
        """Return what gives every weight back its numbers; it holds nothing but those."""


@runtime_checkable
class LinkTransform(Protocol):
    """A transform that moves numbers along links, block by block, before the layers of a block are rounded."""

    @property
    def name(self) -> str:
        """The word for it in recipes."""

    @property
    def verb(self) -> str:
        """What it does to links, for the report: they were `rescaled`."""

    @property
    def needs_data(self) -> bool:
        """Whether numbers of what flows through the model count; else any input does, to find the links with."""

    def problem(self, schemes: Mapping[str, Rounded]) -> str | None:
        """Return why it makes no sense for layers that are rounded so, with the remedy, or `None`."""

    def rescaled(self, scope: Scope, schemes: Mapping[str, Rounded]) -> Sequence[Rescaled]:
        """Rescale links of `scope`, whose layers will be rounded by `schemes`, and return which."""


def chosen_links(scope: Scope, schemes: Mapping[str, Rounded]) -> dict[str, Link]:
    """Return links by the first of their consumers that is in `schemes`; each consumer is in one link only, the first.

    Left out: links without such a consumer, and those read by convolutions of several positions or groups, whose
    columns are others than the channels.
    """
    taken: set[str] = set()
    chosen = {}
    for link in scope.links:
        leader = next((name for name in link.consumers if name in schemes), None)
        by_column = all(scope.weight(name).shape[1] == len(link.channels) for name in link.consumers)
        if leader is not None and by_column and taken.isdisjoint(link.consumers):
            chosen[leader] = link
            taken.update(link.consumers)
    return chosen


def starved(scope: Scope, link: Link, leader: str, statistics: Mapping[str, Any]) -> Rescaled | None:
    """Return a link as it was, and why, where its `leader` is an expert that too few tokens reached to rescale by."""
    count, width = statistics["channel_magnitude"].count, len(link.channels)
    if leader not in scope.experts or count >= width:
        return None
    why = f"{count} tokens reached {leader}, fewer than its {width} inputs"
    return Rescaled(link, np.ones(link.outputs), "", left=why)
