"""What every integer product asks of schemes: scales that factor out of its sums, and sums that fit their registers.

sum_k x_k w_k = s t (sum(code v) - z sum(v)) for x = s (code - z), w = t v; s of a row, t of a channel.
"""

from __future__ import annotations

from collections.abc import Callable

from fewbit.formats.integer import Int
from fewbit.kernels import Request
from fewbit.schemes.granularity import PerChannel, PerTensor, PerToken
from fewbit.schemes.scheme import Scheme

#: The largest magnitude of a weight's code where pairs of products are added in 16 bits: 2 * 255 * 64 < 2^15.
_LARGEST = 64


def refusal(request: Request, saturates: Callable[[], bool]) -> str | None:
    """Return what stands against an integer product; `saturates` tells whether pairs are added in 16 bits."""
    assert request.input is not None  # of the purpose of the kernels that ask
    return (
        _weight_refusal(request.weight)
        or _input_refusal(request.input)
        or _saturation(request.weight, saturates)
        or _overflow(request)
    )


def _weight_refusal(scheme: Scheme) -> str | None:
    number_format = scheme.format
    if not isinstance(number_format, Int) or not number_format.signed or number_format.bits > 8 or not scheme.symmetric:
        return f"its weights are symmetric integers of 8 bits at most, not {scheme}"
    if scheme.granularity not in (PerChannel(), PerTensor()) or scheme.scale_scheme is not None:
        return f"its weights have a scale a channel or tensor, not '{scheme.granularity.name}'"
    return None


def _input_refusal(scheme: Scheme) -> str | None:
    number_format = scheme.format
    if not isinstance(number_format, Int) or number_format.bits > 8 or scheme.float_zero:
        return f"its inputs are integers of 8 bits at most, not {scheme}"
    # A static scale is there already, exact in float32 whatever its type.
    if scheme.scale_scheme is not None or (not scheme.static and scheme.scale_type not in (None, "float32")):
        return f"its inputs have float32 scales, not those of {scheme}"
    if scheme.granularity not in (PerToken(), PerTensor()):
        return f"its inputs have a scale a token or tensor, not '{scheme.granularity.name}'"
    return None


def _saturation(scheme: Scheme, saturates: Callable[[], bool]) -> str | None:
    assert isinstance(scheme.format, Int)  # `_weight_refusal` says so
    if -scheme.format.qmin <= _LARGEST or not saturates():
        return None
    return (
        f"products of {scheme.format.bits}-bit weights saturate without VNNI, which this processor lacks; "
        f"weight = 'int7 {scheme.granularity.name}' does not"
    )


def _overflow(request: Request) -> str | None:
    assert isinstance(request.weight.format, Int)  # `_weight_refusal` says so
    width, most = request.shape[1], (2**31 - 1) // (255 * -request.weight.format.qmin)
    return f"sums of {width} products may exceed 32 bits; {most} do not" if width > most else None
