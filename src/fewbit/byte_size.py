"""Sizes in bytes as people write them: `2GB`, `500 MB`, `1.5GiB`."""

from __future__ import annotations

import re

from fewbit.errors import RecipeError

_UNITS = {"": 1} | {unit: 1000**power for power, unit in enumerate("kmgt", 1)}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", 1)}


def byte_size(given: str | int) -> int:
    """Return the bytes of a size.

    >>> byte_size("2GB"), byte_size("1.5 MiB"), byte_size(4096)
    (2000000000, 1572864, 4096)

    Raises:
        RecipeError: no number of bytes above 0.

    """
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*([kmgt]i?)?b?\s*", str(given).lower())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise RecipeError(f"{given!r:.40} is no size; write 2GB, 500MB or a number of bytes")
    return size
