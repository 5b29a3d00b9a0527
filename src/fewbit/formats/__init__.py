"""What one stored number can be: a frozen value with its bits, its levels, `encode`, `decode` and `round`.

Catalogue of the names that notation knows; integers are spelled `int1` to `int8`.
"""

from __future__ import annotations

#: Named formats, `name -> "module:attribute"`.
FORMATS = {
    **{f"int{bits}": f"fewbit.formats.integer:INT{bits}" for bits in range(1, 9)},
    "e4m3": "fewbit.formats.minifloat:E4M3",
}
