"""The second moment that a range method which looks at the output is given, or why it is given none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbit.numerics.namespace import Array
from fewbit.ranges import OutputRange
from fewbit.schemes.scheme import Scheme


def output_moment(statistics: Mapping[str, Any] | None, scheme: Scheme) -> tuple[Array | None, tuple[str, ...]]:
    """Return the second moment (in, in) for the range method of `scheme`, with a remark where there should be one.

    Raises:
        NonFiniteError: it holds NaN or infinity.

    """
    if not isinstance(scheme.ranging, OutputRange):
        return None, ()
    seen = (statistics or {}).get(scheme.ranging.input_statistic)
    if seen is None:
        why = "there is no statistic of its input"
    elif not (why := seen.too_few):
        moment = seen.result()
        if moment.ndim == 2:
            return moment, ()
        why = "each of its groups of channels has inputs of its own"
    return None, (f"{why}: the extremes are its ranges, nothing is clipped",)
