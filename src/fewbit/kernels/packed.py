"""A QTensor as named integer tensors, for the buffers of a module: `half()` and its kin leave those alone.

Scales, and zero points between codes, are there as the bits of their float32, and unsigned codes of 16 bits as signed
ones: torch cannot pickle uint16. `unpacked(packed(q), q.scheme)` equals `q`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fewbit.formats.integer import Int
from fewbit.numerics.packing import pack, unpack
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme


def packed(qtensor: QTensor) -> dict[str, Tensor]:
    """Return codes, scale, zero point, minimum and learned levels.

    Those of a scale or minimum that is itself quantized come after `scale_` and `minimum_`.
    """
    found = {"codes": _signed(qtensor.codes.contiguous())}
    if qtensor.zero_point is not None:
        zero = qtensor.zero_point.contiguous()
        found["zero_point"] = zero.view(torch.int32) if zero.is_floating_point() else _signed(zero)
    if qtensor.codebook is not None:
        found["codebook"] = qtensor.codebook.contiguous().view(torch.int32)
    found |= _parameters("scale", qtensor.scale)
    return found if qtensor.minimum is None else found | _parameters("minimum", qtensor.minimum)


def _parameters(kind: str, values: Tensor | QTensor) -> dict[str, Tensor]:
    if isinstance(values, QTensor):
        return {f"{kind}_{name}": tensor for name, tensor in packed(values).items()}
    return {kind: values.contiguous().view(torch.int32)}


def unpacked(tensors: Mapping[str, Tensor], scheme: Scheme) -> QTensor:
    """Undo `packed`; shares memory."""

    def parameters(kind: str) -> Tensor | QTensor:
        if scheme.scale_scheme is None:
            return tensors[kind].view(torch.float32)
        ahead = f"{kind}_"
        inner = {name.removeprefix(ahead): tensor for name, tensor in tensors.items() if name.startswith(ahead)}
        return unpacked(inner, scheme.scale_scheme)

    zero = tensors.get("zero_point")
    if zero is not None and scheme.float_zero:
        zero = zero.view(torch.float32)
    elif zero is not None:
        zero = _own(zero, scheme)
    table = tensors["codebook"].view(torch.float32) if scheme.learned else None
    return QTensor(
        codes=_own(tensors["codes"], scheme),
        scale=parameters("scale"),
        zero_point=zero,
        scheme=scheme,
        codebook=table,
        minimum=parameters("minimum") if scheme.minimum else None,
    )


def dense(codes: Tensor, scheme: Scheme) -> Tensor:
    """Return the codes of a weight (out, in) as dense bits, rows of bytes, where a code has fewer than eight."""
    bits = scheme.format.bits
    found: Tensor = pack(scheme.format.to_unsigned(codes), bits) if bits < 8 else _signed(codes.contiguous())
    return found


def loose(codes: Tensor, scheme: Scheme, width: int) -> Tensor:
    """Undo `dense` for rows of `width` codes; what comes out is as `packed` has it."""
    bits = scheme.format.bits
    found: Tensor = scheme.format.from_unsigned(unpack(codes, bits, width)) if bits < 8 else codes
    return found


def _signed(codes: Tensor) -> Tensor:
    return codes.view(torch.int16) if codes.dtype == torch.uint16 else codes


def _own(codes: Tensor, scheme: Scheme) -> Tensor:
    """Undo `_signed`."""
    signed = isinstance(scheme.format, Int) and scheme.format.signed
    return codes.view(torch.uint16) if codes.dtype == torch.int16 and not signed else codes
