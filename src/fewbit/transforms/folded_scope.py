"""What every front end's scope does alike: links come from proven folds, and what a change found there comes back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from fewbit.known_output import KnownOutput
from fewbit.transforms.link import Factors, Link


class Fold(Protocol):
    """A link of a model, and how numbers move along it."""

    @property
    def link(self) -> Link:
        """Where the channels go."""

    def storable(self, factors: Factors) -> Factors:
        """Return factors close by under which a gain becomes a number of 8 bits."""

    def fold(self, factors: Factors) -> Any:
        """Divide the producer's channels, multiply the columns that read them; return what was there."""


FoldT = TypeVar("FoldT", bound=Fold)


class FoldedScope(ABC, Generic[FoldT]):
    """The members of `fewbit.transforms.scope.Scope` that follow from the folds of a model or a part of one."""

    def __init__(self, names: Collection[str]) -> None:
        """Prepare; `names` are those of the quantizable layers."""
        #: The quantizable layers; norms are not among them.
        self.layers = names
        #: Those that a router sends a part of the tokens to.
        self.experts: Collection[str] = ()
        #: What BatchNorms tell of the outputs of layers.
        self.known: Mapping[str, KnownOutput] = {}

    @property
    @abstractmethod
    def _folds(self) -> Sequence[FoldT]:
        """What is proven."""

    @abstractmethod
    def _absorbed(self, fold: FoldT, shift: Factors) -> tuple[float, Any] | str:
        """Move biases; return how far that took the output and what was there, or why nothing was changed."""

    @abstractmethod
    def _remember(self, before: Any) -> None:
        """Keep what was there before anything was changed."""

    @property
    def links(self) -> tuple[Link, ...]:
        """What an exact fold has proven."""
        return tuple(fold.link for fold in self._folds)

    def rescale(self, link: Link, factors: Factors) -> Factors:
        """Divide the channels of the link's producer by about `factors`; return by what, to the last bit."""
        fold = self._fold_of(link)
        exact = fold.storable(factors)
        self._remember(fold.fold(exact))
        return exact

    def absorb(self, link: Link, shift: Factors) -> float | str:
        """Move biases along a link; return how far that took the output of the scope, or why it was not done."""
        found = self._absorbed(self._fold_of(link), shift)
        if isinstance(found, str):
            return found
        change, before = found
        self._remember(before)
        return change

    def _fold_of(self, link: Link) -> FoldT:
        return next(fold for fold in self._folds if fold.link is link)
