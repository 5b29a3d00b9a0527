"""What may be spent: bits a weight, bytes, seconds of a run, or divergence from the float model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from fewbit.byte_size import byte_size
from fewbit.errors import RecipeError

#: What a budget limits.
Limit = Literal["bits", "size", "divergence", "latency"]
_WORDS = {"bits": "bits", "size": "size", "divergence": "divergence", "kl": "divergence", "latency": "latency"}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_FORMS = 'give 4.5 (bits a weight), "300MB", "kl 0.05" or "20ms"'


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit, and what it is of.

    >>> str(Budget("bits", 4.5)), str(Budget.parse("300MB")), Budget.parse("kl 0.05").limit, Budget.parse("20ms").limit
    ('4.5 bits a weight', '300 MB', 0.05, 0.02)
    """

    what: Limit
    #: Stored bits of a weight on average, embedding, head and float layers counted; bytes of all tensors; seconds; nats
    #: a prediction, or noise to signal.
    limit: float

    def __post_init__(self) -> None:
        if self.what not in set(_WORDS.values()):
            raise RecipeError(f"a budget of {self.what!r:.40} is none of bits, size, divergence, latency")
        usable = isinstance(self.limit, int | float) and not isinstance(self.limit, bool)
        if not usable or not 0.0 < self.limit < float("inf"):
            raise RecipeError(f"a budget of {self.limit!r:.40} {self.what} is no positive number; {_FORMS}")

    @classmethod
    def parse(cls, value: Any) -> Budget:
        """Return the budget for a number of bits, a size, a divergence, a time, or a budget.

        Raises:
            RecipeError: none of these.

        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return cls("bits", value)
        text = str(value).strip().lower()
        if found := re.fullmatch(r"([\d.]+)\s*(?:bits?)", text):
            return cls("bits", _number(found[1], value))
        if found := re.fullmatch(r"([\d.]+)\s*(us|ms|s)", text):
            return cls("latency", _number(found[1], value) * _TIMES[found[2]])
        if found := re.fullmatch(r"(kl|divergence)\s*([\d.e-]+)", text):
            return cls("divergence", _number(found[2], value))
        if not isinstance(value, str) or not re.fullmatch(r"[\d.]+\s*[kmgt]i?b", text):
            raise RecipeError(f"budget {value!r:.60} is not understood; {_FORMS}")
        return cls("size", byte_size(value))

    def __str__(self) -> str:
        if self.what == "bits":
            return f"{self.limit:g} bits a weight"
        if self.what == "size":
            return f"{self.limit / 1e6:g} MB"
        return f"divergence {self.limit:g}" if self.what == "divergence" else f"{self.limit * 1e3:g} ms"


def _number(text: str, given: Any) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RecipeError(f"budget {given!r:.60} is not understood; {_FORMS}") from error
