"""What the algorithms that learn roundings refuse alike."""

from __future__ import annotations

from fewbit.errors import RecipeError
from fewbit.schemes.scheme import Scheme

_PRECISIONS = ("auto", "float32", "bfloat16")


def neighbours_problem(name: str, scheme: Scheme) -> str | None:
    """Return why an algorithm that rounds to one of two neighbouring levels takes no `scheme`, or `None`."""
    if scheme.scaled and scheme.format.bits <= 8:
        return None
    return f"{name} learns between the levels of up to 8 bits, not of '{scheme}'; use int8 or less, or nearest"


def require_precision(name: str, precision: object) -> None:
    """Raise `RecipeError` for a type of products that is none."""
    if precision not in _PRECISIONS:
        raise RecipeError(f"{name}: precision {precision!r:.80} is none of {', '.join(_PRECISIONS)}")
