"""What one stored number can be: a frozen value with its bits, its levels, `encode`, `decode` and `round`.

Catalogue of the names that notation knows; integers are `int1` to `int8`, `uint1` to `uint8`, and 16 bits for inputs.
"""

from __future__ import annotations

#: Named formats, `name -> "module:attribute"`.
FORMATS = {
    **{f"int{bits}": f"fewbit.formats.integer:INT{bits}" for bits in (*range(1, 9), 16)},
    **{f"uint{bits}": f"fewbit.formats.integer:UINT{bits}" for bits in (*range(1, 9), 16)},
    "e4m3": "fewbit.formats.minifloat:E4M3",
    "e5m2": "fewbit.formats.minifloat:E5M2",
    "e3m4": "fewbit.formats.minifloat:E3M4",
    "e2m1": "fewbit.formats.minifloat:E2M1",
    "e2m3": "fewbit.formats.minifloat:E2M3",
    "e3m2": "fewbit.formats.minifloat:E3M2",
    "e4m3fnuz": "fewbit.formats.minifloat:E4M3FNUZ",
    "e5m2fnuz": "fewbit.formats.minifloat:E5M2FNUZ",
    "e4m3b11fnuz": "fewbit.formats.minifloat:E4M3B11FNUZ",
    "nf4": "fewbit.formats.codebook:NF4",
    "binary": "fewbit.formats.codebook:BINARY",
    "ternary": "fewbit.formats.codebook:TERNARY",
}
#: Formats whose levels are learned for each tensor, likewise.
LEARNED = {f"kmeans{bits}": f"fewbit.formats.learned:KMEANS{bits}" for bits in (2, 3, 4)}
