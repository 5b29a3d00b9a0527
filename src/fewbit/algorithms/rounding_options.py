"""The options that every algorithm with trained roundings has: how errors count, and what products are taken in."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

from fewbit.errors import RecipeError

_PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundingOptions:
    """What AutoRound, AdaRound and BRECQ are told alike."""

    #: Let every row count alike, however large: each error is divided by the power of its row.
    relative: bool = False
    #: Type of products while training; `auto` is bfloat16 where the device has instructions for it and it is enough.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.relative, bool):
            raise RecipeError(f"{self.name}: relative = {self.relative!r:.80} is not true or false")
        if self.precision not in _PRECISIONS:
            raise RecipeError(f"{self.name}: precision {self.precision!r:.80} is none of {', '.join(_PRECISIONS)}")

    @property
    @abstractmethod
    def name(self) -> str:
        """The word for it in recipes."""
