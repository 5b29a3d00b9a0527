"""A QTensor as a few plain tensors, the same for every kernel, and back.

`codes`: dense n-bit bytes (uint8), low bits first, rows as in the weight. `scale`: in the scheme's type, or float32
where that would not be exact; a quantized scale becomes `scale_codes` and `scale_scale`; of a cast there is none.
`zero_point`: as it is. `minimum`: as the scale. `codebook`: learned levels (out, levels), in the scheme's type.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fewbit.numerics.packing import pack, unpack
from fewbit.qtensor import QTensor, scale_shape, unit_scale
from fewbit.schemes.scheme import Scheme


def to_canonical(qtensor: QTensor) -> dict[str, Tensor]:
    """Return the tensors that stand for `qtensor`."""
    scheme = qtensor.scheme
    tensors = {"codes": pack(scheme.format.to_unsigned(qtensor.codes), scheme.format.bits)}
    if qtensor.zero_point is not None:
        tensors["zero_point"] = qtensor.zero_point
    if not scheme.scaled:
        return tensors
    if qtensor.codebook is not None:
        tensors["codebook"] = qtensor.codebook.to(getattr(torch, scheme.scale_type or "float32"))
    tensors |= _parameters("scale", qtensor.scale, scheme)
    return tensors if qtensor.minimum is None else tensors | _parameters("minimum", qtensor.minimum, scheme)


def _parameters(kind: str, values: Tensor | QTensor, scheme: Scheme) -> dict[str, Tensor]:
    """Return the tensors that stand for scales or minima."""
    if isinstance(values, QTensor):
        return {f"{kind}_{name}": tensor for name, tensor in to_canonical(values).items()}
    stored = values.to(getattr(torch, scheme.scale_type or "float32"))
    return {kind: stored if bool((stored.to(values.dtype) == values).all()) else values}


def from_canonical(tensors: Mapping[str, Tensor], scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
    """Undo `to_canonical` for a weight of `shape`."""
    scales = scale_shape(shape, scheme)

    def parameters(kind: str) -> Tensor | QTensor:
        if scheme.scale_scheme is None:
            return tensors[kind].to(torch.float32).reshape(scales)
        ahead = f"{kind}_"
        inner = {name.removeprefix(ahead): tensor for name, tensor in tensors.items() if name.startswith(ahead)}
        return from_canonical(inner, scheme.scale_scheme, scales)

    patterns = unpack(tensors["codes"], scheme.format.bits, shape[-1])
    return QTensor(
        codes=scheme.format.from_unsigned(patterns),
        scale=parameters("scale") if scheme.scaled else unit_scale(shape, tensors["codes"]),
        zero_point=tensors.get("zero_point"),
        scheme=scheme,
        codebook=tensors["codebook"].to(torch.float32) if scheme.learned else None,
        minimum=parameters("minimum") if scheme.minimum else None,
    )
