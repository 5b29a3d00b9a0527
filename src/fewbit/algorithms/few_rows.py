"""Whether enough inputs have reached a layer for its rounding to be learned from their second moment."""

from __future__ import annotations

from typing import Any


def few_rows(moment: Any, width: int) -> str | None:
    """Return why `moment`, `None` where there is none, is too little for a layer of `width` inputs; or `None`."""
    count = getattr(moment, "count", 0)
    if count >= width:
        return None
    if count:
        return f"{count} rows reached it, fewer than its {width} inputs: its rounding was not trained"
    return "no calibration input reached it: its rounding was not trained"
